"""The loop's data, one global batch ahead: what goes wrong on the way is known before it is needed."""

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

WAIT_LIMIT = 0.05
WAIT_WINDOW = 20


class StepResult(NamedTuple):
    """What all ranks together made of a step."""

    loss: float
    """Nats a token over the global batch."""
    tokens: int
    """Targets of the global batch."""
    wait: float
    """Seconds that the rank which waited longest for data waited."""
    stop: bool
    """Whether a rank was asked to stop, or its data ended."""
    bad_documents: dict[str, int]
    """Documents left out since the run began, by reason."""


class Feed:
    """A rank's part of the global batches.

    Attributes:
        error: One sentence, once the loader cannot go on.

    Args:
        loader: Gives (tokens, cursors) micro-batches, and counts bad documents in `loader.bad`.
        accumulation: Micro-batches a global batch.
        bad_before: Documents left out before this process, by reason.
        bad_reasons: All reasons, in one order on all ranks.
    """

    def __init__(
        self, loader: Any, accumulation: int, bad_before: Mapping[str, int], bad_reasons: Sequence[str]
    ) -> None:
        self.error: str | None = None
        self._loader = loader
        self._accumulation = accumulation
        self._bad_before = dict(bad_before)
        self._reasons = tuple(bad_reasons)
        self._batch: list[Any] = []
        self._bad: Counter[str] = Counter()  # up to the batch that was taken
        self._bad_of_next: Counter[str] = Counter()
        self._wait = 0.0
        self._waits: deque[tuple[float, float]] = deque(maxlen=WAIT_WINDOW)
        self._warned = False

    def fetch(self) -> None:
        """Fetch the next global batch; an error is kept in `error`, until all ranks know of it."""
        started = time.perf_counter()
        try:
            self._batch = [next(self._loader) for _ in range(self._accumulation)]
        except (ValueError, OSError) as error:
            self.error = str(error)
        self._bad_of_next = Counter(self._loader.bad)
        self._wait = time.perf_counter() - started

    def take(self) -> list[Any]:
        """The global batch that was fetched."""
        batch, self._batch, self._bad = self._batch, [], self._bad_of_next
        self._wait = 0.0  # until the next one is fetched, which after the last step none is
        return batch

    def of_all_ranks(self, loss_and_targets: torch.Tensor, stop: bool) -> StepResult:
        """Put together what the ranks have: sums of loss (nats) and targets, (2,) float64, and the rest."""
        counts = [self._bad[reason] for reason in self._reasons]
        others = loss_and_targets.new_tensor([stop or self.error is not None, self._wait, *counts])
        mine = torch.cat([loss_and_targets, others])
        gathered = mine.new_empty(dist.get_world_size() * len(mine))
        dist.all_gather_into_tensor(gathered, mine)
        ranks = gathered.view(-1, len(mine)).cpu()
        loss, tokens, stops, _, *counts = ranks.sum(dim=0).tolist()
        bad = {
            reason: self._bad_before.get(reason, 0) + int(count)
            for reason, count in zip(self._reasons, counts, strict=True)
        }
        bad = {reason: count for reason, count in bad.items() if count}
        return StepResult(loss / max(tokens, 1), int(tokens), ranks[:, 3].max().item(), stops > 0, bad)

    def error_of_any_rank(self) -> str | None:
        """Why the data ended, if it did on a rank. All ranks call it."""
        errors: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, self.error)
        return next(filter(None, errors), None)

    def remedy(self, wait: float, step: float, workers: int) -> str | None:
        """One sentence, once, when `WAIT_WINDOW` steps spent more than `WAIT_LIMIT` of their time waiting.

        Called after every step: it took `step` seconds, `wait` of them without data.
        """
        self._waits.append((wait, step))
        share = sum(wait for wait, _ in self._waits) / sum(step for _, step in self._waits)
        if self._warned or len(self._waits) < WAIT_WINDOW or share <= WAIT_LIMIT:
            return None
        self._warned = True
        return (
            f"the last {WAIT_WINDOW} steps waited for data {share:.0%} of their time: raise data.workers "
            f"(now {workers}), set data.cache_dir, or make token shards with scripts/tokenize.py"
        )
