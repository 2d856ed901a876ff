"""The ranks that share an evaluation: what one knows goes to all, and when one fails all end."""

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
        self._key = f"normlab evaluation failed {work}"

    def gather(self, value: Value) -> list[Value]:
        """What each rank has, by rank. All ranks call it."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def tell_failure(self) -> None:
        """Let the others end after what they are at; they wait for this rank in `end_together`."""
        if self.count > 1:
            _get_default_store().set(self._key, "")

    def one_has_failed(self) -> bool:
        """Whether a rank has called `tell_failure`. It costs a message to rank 0's store."""
        return self.count > 1 and _get_default_store().check([self._key])

    def end_together(self, failure: Exception | None) -> None:
        """Where a rank has failed raise on all, which all call it: here `failure`, where it is this rank's.

        Elsewhere a UserError has the sentence of a UserError or an OSError; of anything else a RuntimeError
        names the rank.
        """
        described = failure and (
            (True, str(failure))
            if isinstance(failure, UserError | OSError)
            else (False, f"{type(failure).__name__}: {failure}")
        )
        failures = {rank: of_rank for rank, of_rank in enumerate(self.gather(described)) if of_rank}
        if not failures:
            return
        if self.rank in failures and self.count > 1:
            _get_default_store().delete_key(self._key)
        if failure is not None:
            raise failure
        rank, (is_plain, sentence) = min(failures.items())
        if is_plain:
            raise UserError(sentence)
        raise RuntimeError(f"rank {rank} of {self.count} has failed: {sentence}")
