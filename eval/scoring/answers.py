"""Where the answers to a task's requests come from: batch by batch from the model, on all ranks of a process
group, or from what an evaluation that was killed has kept of them."""

import hashlib
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeVar

from tqdm import tqdm

from .kept import Keep, KeptAnswers
from .peers import Peers

Answer = TypeVar("Answer")


class Answers:
    """Collects the answers to a task's requests.

    Where there is a process group, all of its ranks collect the answers to the same requests from the same
    model: each answers a part of the batches, and gets all answers. Batches are the same for any number of
    ranks and after any kill, and so are the answers, bit for bit.

    Args:
        bar: makes a progress bar from tqdm's `total`, `initial` and `unit`.
        task: whose requests they are.
        keep: where answers outlive this process; None keeps none.
    """

    def __init__(
        self, bar: Callable[..., tqdm] = tqdm, task: str = "requests", keep: Keep | None = None
    ) -> None:
        self._bar = bar
        self._task = task
        self._keep = keep

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
            answer: the model's answers to the requests of a batch: texts, numbers, or tuples of numbers.
            unit: what the bar counts.

        Raises what `answer` raises, on all ranks where it does on one; see `Peers.end_together`.
        """
        asked = _hash(self._keep.model if self._keep else "", requests, batches)
        peers = Peers(asked)
        kept = KeptAnswers(self._keep, self._task, asked, peers.rank) if self._keep else None
        answers: dict[int, Sequence[Answer]] = self._found(kept, peers, asked, batches, unit)
        own: dict[int, Sequence[Answer]] = {}
        left = [number for number in range(len(batches)) if number not in answers]
        there = sum(map(len, answers.values()))
        done = list(accumulate((len(batches[number]) for number in left), initial=there))
        failure: Exception | None = None
        with self._bar(total=len(requests), initial=there, unit=unit) as bar:
            try:
                for turn in peers.deal(len(left)):
                    number = left[turn]
                    own[number] = answer(batches[number])
                    if kept:
                        kept.add(number, own[number])
                    bar.update(done[turn + 1] - bar.n)
            except Exception as error:
                failure = error
                peers.stop_dealing()
            finally:
                if kept:
                    kept.write()
            peers.end_together(failure)
            bar.update(done[-1] - bar.n)
        for of_rank in peers.gather(own):
            answers |= of_rank
        by_request = {
            i: one
            for number, batch in enumerate(batches)
            for i, one in zip(batch, answers[number], strict=True)
        }
        return [by_request[i] for i in range(len(requests))]

    def _found(
        self, kept: KeptAnswers | None, peers: Peers, asked: str, batches: Sequence[Sequence[int]], unit: str
    ) -> dict[int, Any]:
        """The answers by batch that were kept, the same on all ranks: rank 0 has read them."""
        found = kept.read([len(batch) for batch in batches]) if kept and peers.rank == 0 else {}
        of_ranks = peers.gather((asked, found))
        if len({asked for asked, _ in of_ranks}) > 1:
            raise RuntimeError(f"the ranks ask task '{self._task}' different things, and cannot share it")
        found = of_ranks[0][1]
        if found and self._keep:
            count, total = sum(map(len, found.values())), sum(map(len, batches))
            self._keep.say(f"{self._task}: {count:,} of {total:,}{unit} were answered before, and are kept")
        return found


def _hash(model: str, requests: Sequence[Any], batches: Sequence[Sequence[int]]) -> str:
    """Of what decides the answers, and which batch has which."""
    digest = hashlib.sha256(model.encode())
    for values in (requests, batches):
        for value in values:
            digest.update(f"{value}\0".encode(errors="surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()
