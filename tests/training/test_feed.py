"""The feed: what the ranks add up to, and an error on one that all stop at."""

import time
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from tests.clock import Clock
from tests.distributed import run_on_ranks
from training.feed import Feed, OfAllRanks
from training.timing.mark import Mark

REASONS = ("empty", "too_long")


class Loader:
    """Gives the micro-batches 0, 1, 2, ... and after each one more bad document; fails at `end`."""

    def __init__(
        self,
        reason: str = "empty",
        end: int = 99,
        error: Exception | None = None,
        clock: Clock | None = None,
        seconds: float = 0,
    ) -> None:
        self.bad: Counter[str] = Counter()
        self._reason = reason
        self._numbers: Iterator[int] = iter(range(end))
        self._clock, self._seconds = clock, seconds
        self._error = error or ValueError("the data ends here")

    def __next__(self) -> int:
        if self._clock:
            self._clock.now += self._seconds
        number = next(self._numbers, None)
        if number is None:
            raise self._error
        self.bad[self._reason] += 1
        return number


def sums(loss: float, targets: int) -> torch.Tensor:
    return torch.tensor([loss, targets], dtype=torch.float64)


def step(feed: Feed, loss: float = 1, targets: int = 1) -> tuple[list[int], OfAllRanks]:
    """The batch that is taken, and what the ranks make of it while the next one is fetched."""
    batch = feed.take()
    feed.fetch()
    return batch, feed.gather(sums(loss, targets), stop=False).read()


def add_up(rank: int) -> None:
    feed = Feed(Loader(REASONS[rank]), 3, {"too_long": 10}, REASONS)
    feed.fetch()
    result = feed.gather(sums(loss=6, targets=2 + rank), stop=False).read()
    assert (result.loss, result.tokens, result.stop) == (12 / 5, 5, False)
    assert result.bad_documents == {"too_long": 10}  # nothing of the first batch is taken yet
    for number in range(2):
        batch, result = step(feed, loss=1e9 + rank, targets=10**9)
        assert batch == [3 * number, 3 * number + 1, 3 * number + 2]
        assert (result.loss, result.tokens) == ((2e9 + 1) / 2e9, 2 * 10**9)  # which fp32 cannot hold
        assert result.bad_documents == {"empty": 3 * (number + 1), "too_long": 10 + 3 * (number + 1)}
    assert step(feed, loss=0, targets=0)[1].loss == 0
    assert feed.gather(sums(0, 1), stop=rank == 1).read().stop
    assert feed.error_of_any_rank() is None


def test_two_ranks_add_up_their_losses_and_bad_documents() -> None:
    run_on_ranks(add_up, 2)


def stop_together(rank: int) -> None:
    for error in (ValueError("a document is bad"), OSError("the server is gone")):
        feed = Feed(Loader(end=5 if rank == 1 else 99, error=error), 2, {}, REASONS)
        feed.fetch()
        assert not step(feed)[1].stop
        batch, result = step(feed)  # after which rank 1's third batch lacks its second half
        assert batch == [2, 3] and result.stop and result.bad_documents == {"empty": 8}
        assert feed.error == (str(error) if rank == 1 else None)
        assert feed.error_of_any_rank() == str(error)
    feed = Feed(Loader(end=0 if rank == 1 else 99), 2, {}, REASONS)
    feed.fetch()
    assert feed.gather(sums(0, 0), stop=False).read().stop


def test_two_ranks_stop_together_when_the_data_of_one_ends() -> None:
    run_on_ranks(stop_together, 2)


def wait_for_the_slower(rank: int) -> None:
    clock = Clock()
    time.perf_counter = clock  # of this process alone
    feed = Feed(Loader(clock=clock, seconds=0.05 * rank), 4, {}, REASONS)
    feed.fetch()
    assert step(feed)[1].data_wait == pytest.approx(0.2)
    feed.take()  # the last batch: no other is fetched, nor waited for
    assert feed.gather(sums(1, 1), stop=False).read().data_wait == 0


def test_two_ranks_wait_as_long_as_the_slower_one() -> None:
    run_on_ranks(wait_for_the_slower, 2)


class Gpu(Mark):
    """A device that computes until a time of the clock."""

    def __init__(self, clock: Clock, until: float) -> None:
        self._clock, self._until = clock, until

    def is_reached(self) -> bool:
        return self._clock.now >= self._until


def count_what_a_gpu_waited_for(_rank: int) -> None:
    clock = Clock()
    time.perf_counter = clock  # of this process alone
    feed = Feed(Loader(clock=clock, seconds=0.05), 4, {}, REASONS)
    feed.fetch()
    for computes, waits in ((0.12, 0.1), (1.0, 0.0), (0.0, 0.2)):
        feed.take()
        feed.fetch(Gpu(clock, until=clock.now + computes))
        assert feed.gather(sums(1, 1), stop=False).read().data_wait == pytest.approx(waits)


def test_what_comes_while_the_gpu_computes_was_not_waited_for() -> None:
    run_on_ranks(count_what_a_gpu_waited_for, 1)


def test_an_error_that_is_a_mistake_of_ours_is_not_swallowed() -> None:
    with pytest.raises(RuntimeError):
        Feed(Loader(end=0, error=RuntimeError("a bug")), 1, {}, REASONS).fetch()
