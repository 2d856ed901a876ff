"""A rank's micro-batches, fetched one global batch ahead of the step that trains on them.

So all ranks know that the data of one has ended while they can still stop together, at the end of a step.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from data import BAD_REASONS, Interrupted

from .timing.mark import Mark, on_device


class OfAllRanks(NamedTuple):
    """What the ranks' parts of a step add up to."""

    loss: float
    """Nats per token over the global batch."""
    tokens: int
    """Targets of the global batch."""
    data_wait: float
    """Seconds that the rank which waited longest for data waited."""
    stop: bool
    """Whether a rank was asked to stop, or its data ended."""
    bad_documents: dict[str, int]
    """Documents left out since the run began, by reason."""


class Gathered:
    """What the ranks have sent each other of a step, on its way to this rank's host.

    Args:
        parts: what each rank sent, (ranks, numbers) float64, perhaps still being computed on a GPU.
        bad_before: documents left out before this process, by reason.
        reasons: of the counts behind the first four numbers.
    """

    def __init__(self, parts: torch.Tensor, bad_before: Mapping[str, int], reasons: Sequence[str]) -> None:
        self._bad_before, self._reasons = bad_before, reasons
        self._parts = parts.to("cpu", non_blocking=True)
        self._copied = Mark(parts.device)

    def read(self) -> OfAllRanks:
        """What they add up to. On a GPU it waits for what came before, and not for what was begun since."""
        self._copied.wait()
        loss, tokens, stops, _, *counts = self._parts.sum(dim=0).tolist()
        bad = {
            reason: self._bad_before.get(reason, 0) + int(count)
            for reason, count in zip(self._reasons, counts, strict=True)
        }
        bad = {reason: count for reason, count in bad.items() if count}
        return OfAllRanks(loss / max(tokens, 1), int(tokens), self._parts[:, 3].max().item(), stops > 0, bad)


class Feed:
    """A rank's part of each global batch.

    Attributes:
        error: One sentence, once the loader cannot go on.
        cause: What it raised then.
        taken: The global batch that was taken last.

    Args:
        loader: Gives (tokens, cursors) micro-batches, and counts bad documents in `loader.bad`.
        accumulation: Micro-batches per global batch.
        bad_before: Documents left out before this process, by reason.
        bad_reasons: All reasons, in one order on all ranks.
    """

    def __init__(
        self,
        loader: Any,
        accumulation: int,
        bad_before: Mapping[str, int],
        bad_reasons: Sequence[str] = tuple(BAD_REASONS),
    ) -> None:
        self.error: str | None = None
        self.cause: Exception | None = None
        self._loader = loader
        self._accumulation = accumulation
        self._bad_before = dict(bad_before)
        self._reasons = tuple(bad_reasons)
        self.taken: list[Any] = []
        self._batch: list[Any] = []
        self._bad: Counter[str] = Counter()  # up to the batch that was taken
        self._bad_of_next: Counter[str] = Counter()
        self._wait = 0.0

    def fetch(self, computed: Mark | None = None) -> None:
        """Fetch the next global batch; an error is kept in `error`, until all ranks know of it.

        Where this rank is asked to stop meanwhile, there is none: the ranks stop before it is needed. Nothing
        waited for a micro-batch that comes before the device is at `computed`.
        """
        batch = []
        try:
            for _ in range(self._accumulation):
                started = time.perf_counter()
                batch.append(next(self._loader))
                if computed is None or computed.is_reached():
                    self._wait += time.perf_counter() - started
            self._batch = batch
        except Interrupted:
            pass
        except (ValueError, OSError) as error:
            self.error, self.cause = str(error), error
        self._bad_of_next = Counter(self._loader.bad)

    def take(self) -> list[Any]:
        """The global batch that was fetched."""
        batch, self._batch, self._bad = self._batch, [], self._bad_of_next
        self._wait = 0.0  # until the next one is fetched, which after the last step none is
        self.taken = batch
        return batch

    def gather(self, loss_and_targets: torch.Tensor, stop: bool) -> Gathered:
        """Put together what the ranks have: sums of loss (nats) and targets, (2,) float64, and the rest.

        All ranks call it. It does not wait for a GPU.
        """
        counts = [self._bad[reason] for reason in self._reasons]
        others = torch.tensor([stop or self.error is not None, self._wait, *counts], dtype=torch.float64)
        mine = torch.cat([loss_and_targets, on_device(others, loss_and_targets.device)])
        gathered = mine.new_empty(dist.get_world_size() * len(mine))
        dist.all_gather_into_tensor(gathered, mine)
        return Gathered(gathered.view(-1, len(mine)), self._bad_before, self._reasons)

    def error_of_any_rank(self) -> str | None:
        """Why the data ended, if it did on a rank. All ranks call it."""
        errors: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, self.error)
        return next(filter(None, errors), None)
