"""The shell scripts and the README's commands hang together."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_executable_bash_that_stops_at_errors(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert "set -euo pipefail" in script.read_text()


def test_every_file_that_the_readme_and_the_scripts_name_is_there() -> None:
    texts = [path.read_text() for path in (ROOT / "README.md", *SCRIPTS)]
    named = {name for text in texts for name in re.findall(r"(?:recipes|ds_configs|scripts)/\w+\.\w+", text)}
    assert {"recipes/sample.yaml", "ds_configs/zero1_bf16_cpu.json", "scripts/setup.sh"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_a_ready_environment_is_not_made_again(tmp_path: Path) -> None:
    """`setup.sh` in a copy whose stamp fits its pins and its folder does nothing, and says nothing."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv").mkdir()
    for name in ("requirements.txt", "scripts/setup.sh"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    pins = "{ cat requirements.txt scripts/setup.sh; pwd -P; } | sha256sum | cut -d' ' -f1"
    stamp = subprocess.run(
        ["bash", "-c", pins], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    (tmp_path / ".venv" / ".normlab").write_text(stamp)
    done = subprocess.run(["bash", tmp_path / "scripts" / "setup.sh"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_old_python_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("requirements.txt", "scripts/setup.sh"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n')
    old.chmod(0o755)
    environment = os.environ | {"PYTHON": str(old)}
    done = subprocess.run(
        ["bash", tmp_path / "scripts" / "setup.sh"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: Python 3.9.1 is too old") and done.stderr.count("\n") == 1


def typed(commands: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a user types in `folder`, with this Python first on the path."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "WANDB_MODE": "offline",
        "DS_ACCELERATOR": "cpu",
        **variables,
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_the_guides_examples_run(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "designs.md").read_text()
    for path in ROOT.iterdir():
        if path.name not in ("runs", "docs"):
            (tmp_path / path.name).symlink_to(path)
    files = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", guide, re.DOTALL)
    assert [name for name, _ in files] == ["my_norm.py", "my_block.py", "my_topology.py"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    commands = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    assert len(commands) == 4
    printed = []
    for command in commands:
        done = typed(command, tmp_path, HF_HOME=str(tmp_path / "huggingface"))
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        printed.append(done.stdout + done.stderr)
    assert "passed" in printed[0] and "is finished: validation loss" in printed[0]
    assert (tmp_path / "runs/my_norm/designs/norm.py").read_text() == dict(files)["my_norm.py"]


@pytest.mark.slow
def test_the_readmes_data_examples_run(tmp_path: Path) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = typed(block, ROOT, TMPDIR=str(tmp_path), NORMLAB_JSONL_DIR=str(tmp_path / "jsonl"))
    assert done.returncode == 0, done.stderr
    # the same documents in all four forms
    assert len(re.findall(r"^documents.*", done.stdout, re.MULTILINE)) == 4
    assert len(set(re.findall(r"^documents.*", done.stdout, re.MULTILINE))) == 1, done.stdout
    assert "is finished: validation loss" in done.stderr
