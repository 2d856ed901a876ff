"""What the first step needs is imported at once, and left out of garbage collection."""

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
