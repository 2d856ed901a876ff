"""What the first step needs is imported at once, and left out of garbage collection."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("compiled", [True, False])
def test_libraries_are_loaded_and_are_no_garbage(compiled: bool) -> None:
    code = f"""
import gc, sys, threading
from training.engine.libraries import finish_loading, load_libraries
load_libraries(compiled={compiled})
assert "deepspeed" in sys.modules
assert ("torch._inductor.compile_fx" in sys.modules) is {compiled}
assert gc.isenabled() and gc.get_freeze_count() > 100_000
assert len(gc.get_objects()) < gc.get_freeze_count() / 10  # a few of the background's may be there
finish_loading()
assert not [thread for thread in threading.enumerate() if "valid_vec_isa" in thread.name]
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "of_user", [{}, {"THP_MEM_ALLOC_ENABLE": "0", "PYTORCH_ALLOC_CONF": "backend:native"}]
)
def test_torchs_allocators_are_told_before_they_are_used(of_user: dict[str, str]) -> None:
    """What the environment says goes first."""
    code = """
import os
from training.engine.libraries import load_libraries
load_libraries(compiled=False)
print(os.environ["THP_MEM_ALLOC_ENABLE"], os.environ["PYTORCH_ALLOC_CONF"])
"""
    names = ("THP_MEM_ALLOC_ENABLE", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    environment = {name: value for name, value in os.environ.items() if name not in names} | of_user
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    expected = " ".join(of_user.values()) if of_user else "1 expandable_segments:True"
    assert told.stdout.splitlines()[-1] == expected
