"""All that sees to it that a run's end is explained: who failed first, who died, and when it last lived."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ..run.folder import RunFolder
from .failures import failures_recorded, record_death
from .heartbeat import heart_beating
from .others import others_watched, this_process

if TYPE_CHECKING:
    from ..engine.ranks import Ranks
    from ..run.console import Console


@contextmanager
def run_watched(run: RunFolder, ranks: "Ranks", console: "Console") -> Iterator[None]:
    """Around a training, on all ranks once they have joined: see `failures_recorded`, which raises."""
    import torch.distributed as dist

    members: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(members, this_process(ranks.rank))
    died = partial(record_death, run, world_size=ranks.world_size)
    with (
        others_watched(ranks.rank, died, members),
        heart_beating(run),
        failures_recorded(run, ranks.world_size, console),
    ):
        yield
