"""Which global batches a run passes over, and what that makes of the order of the others.

Global batches are numbered from 0 in the order of the data. Those that are passed over are read and not
trained on, so that every lane goes on behind them.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any


def batch_of_step(step: int, passed: Collection[int]) -> int:
    """The global batch that step number `step`, from 1, trains on where the batches `passed` are not."""
    batch = step - 1
    for number in sorted(passed):
        batch += number <= batch
    return batch


def passed_before(step: int, passed: Collection[int]) -> list[int]:
    """Of the batches `passed` those that lie before the batch of step number `step`."""
    batch = batch_of_step(step, passed)
    return [number for number in sorted(passed) if number < batch]


class PassOver(Iterator[tuple[Any, Mapping[int, Sequence[int]]]]):
    """A rank's micro-batches without those of global batches that are passed over.

    The cursors of what was left out come with the next micro-batch.

    Args:
        loader: gives (tokens, cursors), and counts bad documents in `loader.bad`.
        accumulation: micro-batches per global batch.
        batch: the number of the global batch that the loader begins with.
        passed: the global batches to leave out.
    """

    def __init__(self, loader: Any, accumulation: int, batch: int, passed: Collection[int]) -> None:
        self._loader, self._accumulation = loader, accumulation
        self._batch, self._passed = batch, frozenset(passed)
        self._left = 0  # micro-batches of the batch under way

    @property
    def bad(self) -> Counter[str]:
        return self._loader.bad

    def __next__(self) -> tuple[Any, Mapping[int, Sequence[int]]]:
        """The next micro-batch that is trained on. Raises what the loader raises."""
        before: dict[int, Sequence[int]] = {}
        if not self._left:
            while self._batch in self._passed:
                for _ in range(self._accumulation):
                    before |= next(self._loader)[1]
                self._batch += 1
            self._batch += 1
            self._left = self._accumulation
        tokens, moved = next(self._loader)
        self._left -= 1
        return tokens, {**before, **moved}
