"""What `--restart` keeps of the run before: all of it, as a run folder inside the run folder."""

import os
from collections.abc import Sequence
from pathlib import Path

RUN_FILES = (
    "checkpoints",
    "eval",
    "samples.jsonl",
    "diagnostics.parquet",
    "profile",
    "designs",
    "tokenizer",
    "failure.json",
    "environment.json",
    "ds_config.json",
    "recipe.yaml",
    "summary.json",
    "metrics.jsonl",
)
"""What a run leaves beside its logs. The metrics go last: a start that finds them without checkpoints does
not begin again by itself."""
ASIDE = "before_restart_"
PREFLIGHT_BEFORE = "preflight_before.json"
"""What the run before knew of its design, while the new one is checked."""


def without_restart(command: Sequence[str]) -> list[str]:
    """The words that go on with what `command` began: `--restart` would begin once more."""
    return [word for word in command if word.partition("=")[0] != "--restart"]


def runs_put_aside(run_dir: Path) -> list[Path]:
    """The folders of the runs that were put aside in a run folder, the latest last."""
    found = [path for path in run_dir.glob(f"{ASIDE}*") if path.name.removeprefix(ASIDE).isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(ASIDE)))


def set_aside(run_dir: Path) -> Path | None:
    """Move what a run has left into `before_restart_N`, the first that is free; None where there is nothing.

    A kill midway loses nothing: the rest is set aside by the next `--restart`.
    """
    there = [name for name in RUN_FILES if (run_dir / name).exists()]
    if not there:
        return None
    number = 1
    while (run_dir / f"{ASIDE}{number}").exists():
        number += 1
    aside = run_dir / f"{ASIDE}{number}"
    aside.mkdir()
    for name in there:
        os.rename(run_dir / name, aside / name)
    if (run_dir / PREFLIGHT_BEFORE).exists():
        os.rename(run_dir / PREFLIGHT_BEFORE, aside / "preflight.json")
    return aside
