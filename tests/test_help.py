"""Every command explains itself: `--help` ends well, names every option that there is, and loads no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "deepspeed", "datasets", "wandb", "transformers", "lm_eval", "pandas", "pydantic"}
MODULES = [path for name in ("model", "data", "training", "eval") for path in (ROOT / name).rglob("*.py")]
COMMANDS = sorted(
    name.removesuffix(".__main__")
    for path in MODULES
    if '\nif __name__ == "__main__":' in path.read_text()
    for name in [".".join(path.relative_to(ROOT).with_suffix("").parts)]
)
SCRIPTS = ["train.py"] + sorted(
    f"scripts/{path.name}"
    for path in (ROOT / "scripts").glob("*.py")
    if '\nif __name__ == "__main__":' in path.read_text()
)
LOOKED_FOR = {
    "train.py": "--profile --skip_preflight --explain --run_dir --model.variant --ds.path.to.key",
    "scripts/plan.py": "--gpus --mfu --json --config --deepspeed_config",
    "scripts/judge.py": "--seeds --baseline --ranks --runs --json --recipe MY_DESIGN.py",
    "scripts/study.py": "--plan --status --sequential --retry --runs STUDY.yaml",
    "model.catalogue": "NAME --filter",
}
"""What users have missed in a help text."""
RUN = """
import argparse, os, runpy, sys
from training.config.command_line import CommandLine

actions, lines = [], []
show, read = argparse.ArgumentParser.format_help, CommandLine.read
argparse.ArgumentParser.format_help = lambda self: actions.extend(self._actions) or show(self)
CommandLine.read = lambda self, argv: lines.append(self) or read(self, argv)
command, sys.argv = sys.argv[1], [sys.argv[1], "--help"]
if command.endswith(".py"):
    sys.path.insert(0, os.path.dirname(command))  # as Python does for a script
run = runpy.run_path if command.endswith(".py") else runpy.run_module
try:
    run(command, run_name="__main__")
finally:
    known = {"/".join(a.option_strings) or str(a.metavar) for a in actions if a.help is not argparse.SUPPRESS}
    for line in lines:
        known |= {f"--{key}" for key in (*line._types(), *line.options)} | {*line.switches}
    print("known:", *known, file=sys.__stdout__)
    print("imported:", *sys.modules, file=sys.__stdout__)
"""


def test_the_walk_finds_the_commands() -> None:
    assert {"eval", "eval.scorecard", "model.catalogue", "data.sample", "data.stats"} <= {*COMMANDS}
    assert LOOKED_FOR.keys() <= {*COMMANDS, *SCRIPTS}
    assert {"train.py", "scripts/judge.py", "scripts/plan.py", "scripts/tokenize_data.py"} <= {*SCRIPTS}


@pytest.mark.parametrize("command", [*COMMANDS, *SCRIPTS])
def test_help_names_every_option_before_anything_heavy_is_loaded(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    text, _, rest = done.stdout.partition("\nknown:")
    known, _, imported = rest.partition("\nimported:")
    assert HEAVY.isdisjoint(imported.split()), HEAVY & {*imported.split()}
    assert text.startswith("usage: ") and "-h, --help" in text
    options = [option.split("/")[-1] for option in known.split()]
    assert options
    named = {word.strip("[],.;:()=") for word in text.split()}
    options += LOOKED_FOR.get(command, "").split()
    assert [option for option in options if option not in named] == []
