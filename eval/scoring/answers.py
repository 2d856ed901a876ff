"""Where the answers to a task's requests come from: batch by batch, from the model."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

Answer = TypeVar("Answer")


class Answers:
    """Collects the answers to requests, in this process.

    Args:
        bar: makes a progress bar from tqdm's `total` and `unit`.
    """

    def __init__(self, bar: Callable[..., tqdm] = tqdm) -> None:
        self._bar = bar

    def collect(
        self,
        requests: Sequence[Any],
        batches: Sequence[Sequence[int]],
        answer: Callable[[Sequence[int]], Sequence[Answer]],
        unit: str,
    ) -> list[Answer]:
        """The answers to all requests, in their order.

        Args:
            requests: what is asked; decides the answers, whoever gives them.
            batches: indices into `requests`, each once. They follow from the requests alone.
            answer: the model's answers to the requests of a batch.
            unit: what the bar counts.
        """
        answers: dict[int, Answer] = {}
        with self._bar(total=len(requests), unit=unit) as bar:
            for batch in batches:
                answers |= zip(batch, answer(batch), strict=True)
                bar.update(len(batch))
        return [answers[i] for i in range(len(requests))]
