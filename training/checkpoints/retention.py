"""Which checkpoints stay, and what a process that was killed has left beside them."""

import os
import shutil
from pathlib import Path

from ..config.recipe import TrainConfig
from ..state import TrainState
from .files import sync_folder
from .found import complete_checkpoints


def prune(folder: Path, train: TrainConfig, state: TrainState) -> None:
    """Remove what need not stay, now that the checkpoint of `state` is complete.

    The newest `keep_checkpoints`, the best and the milestones stay. Only complete checkpoints of this step
    and before count: one that is damaged, or of a later step, is none that a run could go on from.
    """
    complete = {
        step: path for step, path in complete_checkpoints(folder.parent).items() if step <= state.step
    }
    for step, path in list(complete.items())[: -train.keep_checkpoints]:
        is_milestone = train.milestone_every is not None and step % train.milestone_every == 0
        if step not in (state.step, state.best_step) and not is_milestone:
            remove(path)


def put_in_place(partial: Path, final: Path) -> None:
    """Give a checkpoint that is on the disk its name, which takes the place of what has it."""
    if final.exists():
        remove(final)
    os.rename(partial, final)
    sync_folder(final.parent)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint: a kill at any moment leaves all of it or a leftover, which is no checkpoint."""
    leftover = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(leftover, ignore_errors=True)
    os.rename(checkpoint, leftover)
    shutil.rmtree(leftover, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what was being written, converted or removed when a process was killed, of whichever step."""
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)
