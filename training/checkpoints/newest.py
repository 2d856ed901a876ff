"""Which checkpoint a run goes on from, and the state that it holds beside weights and optimizer."""

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import torch.distributed as dist

from model.errors import UserError

from ..run.reader import (
    checkpoint_name,
    damaged_folders,
    read_json,
    read_metrics,
    read_summary,
    step_folders,
)
from ..state import TrainState
from .found import best_validation, complete_checkpoints, damage, none_is_whole


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files match its manifest, the same on all ranks, which all call it.

    Damaged ones after it are renamed `damaged_step_N`, and those before it that lack a file or a part of one;
    whoever reads one of these looks at its checksums. `warn` is told of each, and where a run begins again
    that made steps and had no checkpoint yet. Raises UserError, on all ranks, where there are checkpoints and
    none is whole: nothing is renamed then.
    """
    found: tuple[Path | None, str | None] = (None, None)
    if dist.get_rank() == 0:
        try:
            found = _choose(folder, warn)
        except (UserError, OSError) as error:  # the other ranks wait for an answer
            found = (None, str(error))
    answer = [found]
    dist.broadcast_object_list(answer)
    checkpoint, problem = answer[0]
    if problem:
        raise UserError(problem)
    return checkpoint


def read_state(
    checkpoint: Path | None, data_fingerprints: Sequence[str], any_ranks: bool = False
) -> TrainState:
    """The state alone, before there is an engine; that of a run's beginning where there is no checkpoint.

    The data have the first fingerprint now; a checkpoint may also have one of the others. A field that an
    older NormLab did not write is as at a run's beginning. Raises UserError where it is of other data, of a
    newer NormLab or, unless `any_ranks`, of another number of ranks.
    """
    if checkpoint is None:
        return TrainState(data_fingerprint=data_fingerprints[0])
    file = checkpoint / "trainer_state.json"
    saved = read_json(file)
    try:
        ranks = saved.pop("world_size")
        saved["cursors"] = {int(lane): tuple(cursor) for lane, cursor in saved["cursors"].items()}
        if type(saved["step"]) is not int or not isinstance(saved["rng"], list):
            raise TypeError
        fingerprint = saved["data_fingerprint"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{file} does not hold the state of a run: bring a whole checkpoint back") from None
    if unknown := saved.keys() - {field.name for field in fields(TrainState)}:
        raise UserError(
            f"{file} holds {', '.join(sorted(unknown))}, which this NormLab does not know: go on with the "
            "newer one that wrote it"
        )
    if ranks != dist.get_world_size() and not any_ranks:
        raise UserError(
            f"{checkpoint} was written on {len(saved['rng'])} rank(s), but {dist.get_world_size()} are "
            "running: resume on the same number, or set checkpoint.load_universal to true"
        )
    if fingerprint not in data_fingerprints:
        raise UserError(
            f"{checkpoint} was written on other data than its recipe finds now: choose another --run_dir, or "
            "bring the first data back"
        )
    saved["data_fingerprint"] = data_fingerprints[0]
    state = TrainState(**saved)
    _look_for_best(state, checkpoint.parent)
    return state


def _look_for_best(state: TrainState, folder: Path) -> None:
    """Where the best checkpoint was found damaged, the best is the best of those that are there."""
    name = checkpoint_name(state.best_step or 0)
    if state.best_step is None or (folder / name).exists() or not (folder / f"damaged_{name}").exists():
        return
    there = {step for step in complete_checkpoints(folder.parent) if step <= state.step}
    state.best_step, state.best_val_loss = best_validation(folder.parent, there) or (None, None)


def _choose(folder: Path, warn: Callable[[str], None]) -> tuple[Path | None, str | None]:
    """The checkpoint to go on from, or why the run cannot go on; neither where it begins."""
    problems: dict[Path, str] = {}
    for step, path in reversed(step_folders(folder).items()):
        if problem := damage(path):
            problems[path] = problem
            continue
        complete = complete_checkpoints(folder.parent)
        for before, earlier in step_folders(folder).items():
            if before < step and before not in complete and (problem := damage(earlier)):
                problems[earlier] = problem
        for damaged, said in problems.items():
            name = _free_name(damaged)
            os.rename(damaged, name)
            warn(f"{damaged} is damaged ({said}) and is called {name.name} now: step {step} is taken")
        return path, None
    if problems or damaged_folders(folder):
        return None, none_is_whole(folder)
    if lines := read_metrics(folder.parent):
        file = folder.parent / "summary.json"
        status = read_summary(folder.parent).get("status") if file.is_file() else None
        how = "was killed" if status in ("running", None) else "ended"
        warn(f"no checkpoint was written before the run {how} at step {lines[-1]['step']}: it begins again")
    return None, None


def _free_name(checkpoint: Path) -> Path:
    """`damaged_step_N` beside a checkpoint, with a number where there is one of that name."""
    name, number = checkpoint.with_name(f"damaged_{checkpoint.name}"), 2
    while name.exists():
        name = checkpoint.with_name(f"damaged_{checkpoint.name}_{number}")
        number += 1
    return name
