"""The ranks that share an evaluation: what one knows goes to all, and when one fails all end."""

from collections.abc import Iterator
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from model.errors import UserError

Value = TypeVar("Value")


class Peers:
    """The ranks of the process group, as one of them sees it; without a group, this process alone.

    Args:
        work: a name for what they do together, the same on all of them.
    """

    def __init__(self, work: str) -> None:
        self.rank, self.count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._key = f"normlab evaluation {work}"

    def gather(self, value: Value) -> list[Value]:
        """What each rank has, by rank. All ranks call it."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def deal(self, total: int) -> Iterator[int]:
        """The numbers below `total`, each on one rank: the next goes to the rank that asks first, so that all
        end together though one is slower. It ends early once a rank has called `stop_dealing`."""
        if self.count == 1:
            yield from range(total)
            return
        store = _get_default_store()
        while (number := store.add(self._key, 1) - 1) < total:
            yield number

    def stop_dealing(self) -> None:
        """Let the others end after what they are at; they wait for this rank in `end_together`."""
        if self.count > 1:
            _get_default_store().add(self._key, 2**40)

    def end_together(self, failure: Exception | None) -> None:
        """When all are dealt: where a rank has failed raise on all, here `failure`, where it is this rank's.

        Elsewhere a UserError has the sentence of a UserError or an OSError; of anything else a RuntimeError
        names the rank.
        """
        described = failure and (
            (True, str(failure))
            if isinstance(failure, UserError | OSError)
            else (False, f"{type(failure).__name__}: {failure}")
        )
        failures = {rank: of_rank for rank, of_rank in enumerate(self.gather(described)) if of_rank}
        if self.count > 1 and self.rank == 0:
            _get_default_store().delete_key(self._key)  # the same work may be asked for again
        if failure is not None:
            raise failure
        if not failures:
            return
        rank, (is_plain, sentence) = min(failures.items())
        if is_plain:
            raise UserError(sentence)
        raise RuntimeError(f"rank {rank} of {self.count} has failed: {sentence}")
