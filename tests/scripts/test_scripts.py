"""The shell scripts and the documentation's commands hang together."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"])
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
MOVED = {"scripts/tokenize.py"}  # named by the changelog


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_executable_bash_that_stops_at_errors(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert "set -euo pipefail" in script.read_text()


def test_every_file_that_a_page_or_a_script_names_is_there() -> None:
    texts = [path.read_text() for path in (*PAGES, *SCRIPTS)]
    directories = "recipes|ds_configs|scripts|docs|model|data|training|eval|tests"
    pattern = rf"(?<![\w/.])(?:{directories})/(?:\w+/)*\w+\.(?:py|sh|yaml|json|md|png)\b"
    named = {name for text in texts for name in re.findall(pattern, text)}
    assert {"recipes/sample.yaml", "ds_configs/zero1_bf16_cpu.json", "scripts/setup.sh"} <= named
    assert {"docs/data.md", "training/plan/memory.py", "scripts/gpu_check/prepare.sh"} <= named
    assert [name for name in sorted(named - MOVED) if not (ROOT / name).is_file()] == []


def test_every_link_between_pages_leads_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    local = [(page, link) for page, link in links if not link.startswith("https://")]
    assert len(local) > 15
    for page, link in local:
        name, _, heading = link.partition("#")
        target = page.parent / name
        assert target.is_file(), (page.name, link)
        headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in {anchor(text) for text in headings}, (page.name, link)


def anchor(heading: str) -> str:
    """The fragment under which a page shows a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_module_that_a_page_runs_is_there() -> None:
    """`python -m NAME` with one of our packages: it has a main part."""
    named = {name for page in PAGES for name in re.findall(r"python (?:-P )?-m ([a-z_.]+)", page.read_text())}
    ours = {name for name in named if name.partition(".")[0] in ("model", "data", "training", "eval")}
    assert {"eval", "eval.scorecard", "model.preflight", "data.stats", "data.sample"} <= ours
    for name in ours - {"data"}:  # the changelog's old name of data.sample
        path = ROOT / name.replace(".", "/")
        file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert "__main__" in file.read_text(), name


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
    assert [name for name, _ in files] == ["my_norm.py", "my_block.py", "my_topology.py", "my_warmup.py"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    commands = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    assert len(commands) == 5
    printed = []
    for number, command in enumerate(commands):
        if number > 0:  # the check in full, of the first, takes half a minute
            command = command.replace("--model.preset gpt2_small", "--quick")
        done = typed(command, tmp_path, HF_HOME=str(tmp_path / "huggingface"))
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        printed.append(done.stdout + done.stderr)
    assert "passed" in printed[0] and "is finished: validation loss" in printed[0]
    assert (tmp_path / "runs/my_norm/designs/norm.py").read_text() == dict(files)["my_norm.py"]


def test_the_readmes_norm_is_the_guides() -> None:
    """The guide's is checked and trained below."""
    readme, guide = (path.read_text() for path in (ROOT / "README.md", ROOT / "docs" / "designs.md"))
    (norm,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert norm == re.findall(r"```python\n(.*?)```", guide, re.DOTALL)[0]
    assert len(readme.splitlines()) <= 120


@pytest.mark.slow
def test_the_data_pages_examples_run(tmp_path: Path) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    done = typed(block, ROOT, TMPDIR=str(tmp_path), NORMLAB_JSONL_DIR=str(tmp_path / "jsonl"))
    assert done.returncode == 0, done.stderr
    # the same documents in all four forms
    assert len(re.findall(r"^documents.*", done.stdout, re.MULTILINE)) == 4
    assert len(set(re.findall(r"^documents.*", done.stdout, re.MULTILINE))) == 1, done.stdout
    assert "is finished: validation loss" in done.stderr
