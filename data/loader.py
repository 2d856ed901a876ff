"""The training loop's data: micro-batches from the lanes of one rank, made ahead by worker processes."""

import atexit
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from model.errors import UserError

from .config import MOST_LANES, DataConfig
from .corpus import Corpus, lanes_of
from .interrupts import Interrupted, check_interrupted, interruptible, never
from .lanes import Cursor
from .workers.sequences import LaneSequence, Maker, Place
from .workers.starter import Starter
from .workers.worker import Worker, make_for

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)  # without a handler a warning goes to stderr, which is the run's log


def check_lanes(config: DataConfig, corpus: Corpus, world_size: int) -> None:
    """Raise UserError where the source has fewer shards than lanes, or ranks cannot share these evenly."""
    lanes, shards = lanes_of(config, corpus), len(corpus.shards)
    if lanes > shards:
        raise UserError(
            f"data.lanes is {lanes}, but {corpus.source.name} has {shards} shards to train on: "
            f"set data.lanes to {shards} or less, or leave it out"
        )
    if lanes % world_size == 0:
        return
    if config.lanes is not None:
        fitting = ", ".join(str(size) for size in range(1, lanes + 1) if lanes % size == 0)
        raise UserError(
            f"data.lanes is {lanes}, which {world_size} processes cannot share evenly: "
            f"world sizes that divide it are {fitting}"
        )
    if world_size > shards:
        raise UserError(
            f"{corpus.source.name} has {shards} shards to train on, too few for {world_size} processes: "
            f"start {lanes} of them or fewer"
        )
    raise UserError(
        f"{world_size} processes cannot share evenly the {lanes} lanes that {corpus.source.name} gets by "
        f"itself: set data.lanes to {min(shards, MOST_LANES) // world_size * world_size}"
    )


class LaneLoader(Iterator["tuple[torch.Tensor, dict[int, Cursor]]"]):
    """Endless micro-batches of one rank, each with the cursors of the lanes that it moved.

    Rank r takes the sequences `first_sequence` + r, + world_size, ... The cursors that come with a
    micro-batch hold after it: given back as `cursors`, with `first_sequence` advanced by all ranks'
    sequences, they continue the run, also on another world size or with other workers. What was made ahead
    and not taken is not lost.

    Attributes:
        bad: The documents left out so far, by reason, on the way to the sequences that were taken.

    Args:
        corpus: The documents.
        config: Lanes, seed, packing, shuffle window, workers and prefetch.
        block_size: Input tokens per sequence, T; blocks are disjoint and T + 1 tokens long.
        micro_batch: Sequences per micro-batch, B.
        rank: This process, from 0.
        world_size: The number of processes; it divides the lanes.
        first_sequence: The sequence of the run to begin with, a multiple of `world_size`.
        cursors: Where lanes continue; a lane that is not named begins at its beginning.
        interrupted: Asked several times per second while there is no data; waiting ends once it is true.
        say: Is told when a worker is started again.

    Raises:
        UserError: `data.lanes` does not fit the source or the number of processes, or a size is not positive.
        ValueError: `rank` or `first_sequence` does not fit `world_size`.
    """

    def __init__(
        self,
        corpus: Corpus,
        config: DataConfig,
        *,
        block_size: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        first_sequence: int = 0,
        cursors: Mapping[int, Sequence[int]] | None = None,
        interrupted: Callable[[], bool] = never,
        say: Callable[[str], object] = _log.warning,
    ) -> None:
        if block_size < 1 or micro_batch < 1:
            raise UserError(f"block_size {block_size} and micro_batch {micro_batch} must both be 1 or more")
        check_lanes(config, corpus, world_size)
        lanes = lanes_of(config, corpus)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}: with a world size of {world_size} it is 0 to {world_size - 1}")
        if first_sequence < 0 or first_sequence % world_size:
            raise ValueError(
                f"first_sequence is {first_sequence}: it must be a multiple of the world size {world_size}"
            )
        self.bad: Counter[str] = Counter()
        self._interrupted = interrupted
        self._shape = (micro_batch, block_size + 1)
        self._dtype = corpus.tokenizer.dtype
        places = cursors or {}
        # the lanes that this rank's sequences come from, round and round
        mine = range(rank, lanes, world_size)
        turn = [(first_sequence + rank + i * world_size) % lanes for i in range(len(mine))]
        maker = Maker(corpus, config, block_size)

        def place(turn: list[int]) -> Place:
            return Place({lane: Cursor(*places.get(lane, Cursor())) for lane in sorted(turn)}, turn)

        self._workers: list[Worker] = []
        if config.workers == 0:
            self._sequences = _unless_interrupted(maker.sequences(place(turn)))
            return
        count = min(config.workers, len(mine))
        worker_of = {lane: number % count for number, lane in enumerate(mine)}
        starter = Starter(partial(make_for, maker=maker))
        self._workers = [
            Worker(
                starter,
                place([lane for lane in turn if worker_of[lane] == number]),
                config.prefetch,
                config.timeout_s,
                say,
            )
            for number in range(count)
        ]
        self._sequences = _in_turn([self._workers[worker_of[lane]] for lane in turn])
        self._stop_workers = weakref.finalize(self, _stop, starter, self._workers)
        atexit.register(self._stop_workers)  # before multiprocessing waits for its children

    @property
    def restarts(self) -> int:
        """How often a worker that was killed, or hung, was started again."""
        return sum(worker.restarts for worker in self._workers)

    def start(self) -> None:
        """Fork the workers now and not at the first `next`.

        Best while the process is small: they keep a copy of every page that it writes afterwards. Where it is
        interrupted, `next` says so.
        """
        with suppress(Interrupted), interruptible(self._interrupted):
            for worker in self._workers:
                worker.start()

    def __next__(self) -> "tuple[torch.Tensor, dict[int, Cursor]]":
        """The next micro-batch: (B, T + 1) uint16 (int32 for a large vocabulary), and the cursors of the
        lanes it moved.

        Raises:
            UserError: a document is bad and stops the run, or a cursor does not fit the corpus.
            OSError: the source cannot be read, or workers are killed again and again.
            Interrupted: it was, before the micro-batch was whole; the loader is of no use any more.
        """
        import torch  # only here, so that workers can be forked before it is loaded

        blocks = np.empty(self._shape, dtype=self._dtype)
        moved = {}
        with interruptible(self._interrupted):
            for block in blocks:
                block[:], lane, moved[lane], bad = next(self._sequences)
                if bad:
                    self.bad += bad
        return torch.from_numpy(blocks), moved


def _in_turn(workers: Sequence[Worker]) -> Iterator[LaneSequence]:
    for worker in cycle(workers):
        yield next(worker)


def _unless_interrupted(sequences: Iterator[LaneSequence]) -> Iterator[LaneSequence]:
    while True:
        check_interrupted()
        yield next(sequences)


def _stop(starter: Starter, workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.close()
    starter.stop()
