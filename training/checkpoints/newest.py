"""Which checkpoint a run goes on from, and the state that it holds beside weights and optimizer."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist

from model.errors import UserError

from ..run.reader import damage, step_folders
from ..state import TrainState


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files match its manifest, the same on all ranks, which all call it.

    `warn` is told of each checkpoint that is passed over.
    """
    found: list[Path | None] = [None]
    if dist.get_rank() == 0:
        for path in reversed(step_folders(folder).values()):
            if problem := damage(path):
                warn(f"{path} is damaged ({problem}); the checkpoint before it is tried")
            else:
                found = [path]
                break
    dist.broadcast_object_list(found)
    return found[0]


def read_state(
    checkpoint: Path | None, data_fingerprints: Sequence[str], any_ranks: bool = False
) -> TrainState:
    """The state alone, before there is an engine; that of a run's beginning where there is no checkpoint.

    The data have the first fingerprint now; a checkpoint may also have one of the others. Raises UserError
    where it is of other data or, unless `any_ranks`, of another number of ranks.
    """
    if checkpoint is None:
        return TrainState(data_fingerprint=data_fingerprints[0])
    saved = json.loads((checkpoint / "trainer_state.json").read_text())
    if saved.pop("world_size") != dist.get_world_size() and not any_ranks:
        raise UserError(
            f"{checkpoint} was written on {len(saved['rng'])} rank(s), but {dist.get_world_size()} are "
            "running: resume on the same number, or set checkpoint.load_universal to true"
        )
    if saved["data_fingerprint"] not in data_fingerprints:
        raise UserError(
            f"{checkpoint} was written on other data than its recipe finds now: choose another --run_dir, or "
            "bring the first data back"
        )
    saved["data_fingerprint"] = data_fingerprints[0]
    saved["cursors"] = {int(lane): cursor for lane, cursor in saved["cursors"].items()}
    return TrainState(**saved)
