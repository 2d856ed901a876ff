"""The commands of evaluation: what is refused or helped is answered before anything heavy is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "deepspeed", "pandas", "scipy", "jinja2", "lm_eval", "datasets", "transformers", "wandb")
# Prints the heavy modules that the command has imported when it ends.
CODE = """
import runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    print("HEAVY:", *sorted(sys.modules.keys() & set({heavy!r})))
"""
COMMANDS = {
    "eval": [],
    "eval.export": ["--out", "there"],
    "eval.scorecard": [],
    "eval.report": ["--out", "report.html"],
    "eval.generate": ["--prompt", "The"],
}


def command(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    code = CODE.format(heavy=HEAVY)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, module, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("module", COMMANDS)
def test_help_comes_before_anything_heavy(module: str) -> None:
    done = command(module, "--help")
    assert done.returncode == 0 and f"usage: python -m {module}" in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY:"


@pytest.mark.parametrize("module", COMMANDS)
def test_a_missing_folder_is_refused_before_anything_heavy(module: str, tmp_path: Path) -> None:
    done = command(module, str(tmp_path / "nowhere"), *COMMANDS[module])
    assert done.returncode == 2
    assert done.stderr == f"error: there is no run folder {tmp_path / 'nowhere'}\n"
    assert done.stdout.splitlines() == ["HEAVY:"]
