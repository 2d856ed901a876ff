"""Which of a run's checkpoints are scored: by step, by a word, and whether one is still there."""

from pathlib import Path

from model.errors import UserError
from training.checkpoints.found import (
    best_validation,
    complete_checkpoints,
    find_checkpoint,
    whole_checkpoints,
)

WORDS = ("all", "best", "last")
"""What --step takes beside a number."""


def step_or_word(text: str) -> int | str:
    """What was given as --step. Raises UserError."""
    if text in WORDS:
        return text
    if text.isascii() and text.isdecimal():
        return int(text)
    raise UserError(f"--step is '{text}', but it must be {', '.join(WORDS)} or a number")


def choose_steps(run_dir: Path, step: int | str) -> list[int]:
    """The steps of the complete checkpoints that `step` stands for, the lowest first.

    `best` has the lowest validation loss of those that are there. Raises UserError where there is none.
    """
    if step == "best":
        return [_best_step(run_dir)]
    _, found = find_checkpoint(run_dir, step if isinstance(step, int) else None)
    return list(whole_checkpoints(run_dir)) if step == "all" else [found]


def is_there(run_dir: Path, step: int) -> bool:
    """Whether a run has a complete checkpoint of `step`: training removes older ones."""
    return step in complete_checkpoints(run_dir)


def _best_step(run_dir: Path) -> int:
    find_checkpoint(run_dir)
    complete = whole_checkpoints(run_dir)
    if (best := best_validation(run_dir, complete)) is None:
        there = ", ".join(map(str, complete))
        raise UserError(
            f"no checkpoint of {run_dir} was validated at its step, so none is the best: the steps there are "
            f"{there}"
        )
    return best[0]
