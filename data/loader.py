"""The training loop's data: micro-batches from the lanes of one rank, made ahead by worker processes."""

import atexit
import multiprocessing
import os
import queue
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from model.errors import UserError

from .config import MOST_LANES, DataConfig
from .corpus import Corpus, lanes_of
from .interrupts import LOOK_SECONDS, check_interrupted, interruptible, never
from .lanes import Cursor, Lane, open_lanes
from .parallel import portable

if TYPE_CHECKING:
    import torch

CHUNK = 16
"""Sequences that a worker hands over at once, at most."""
PARENT_LOOK_SECONDS = 1.0


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
        mine = {
            lane: Lane(corpus, config, lane, block_size, Cursor(*places.get(lane, Cursor())))
            for lane in range(rank, lanes, world_size)
        }
        # the lanes that this rank's sequences come from, round and round
        turn = [(first_sequence + rank + i * world_size) % lanes for i in range(len(mine))]
        self._workers: list[_Worker] = []
        if config.workers == 0:
            self._sequences = _unless_interrupted(_fill_in_turn(mine, turn, block_size, self._dtype))
            return
        count = min(config.workers, len(mine))
        worker_of = {lane: number % count for number, lane in enumerate(mine)}
        self._workers = [
            _Worker(
                _fill_in_turn(
                    {lane: mine[lane] for lane in mine if worker_of[lane] == number},
                    [lane for lane in turn if worker_of[lane] == number],
                    block_size,
                    self._dtype,
                ),
                ahead=config.prefetch,
            )
            for number in range(count)
        ]
        self._sequences = _from_workers(self._workers, [worker_of[lane] for lane in turn])
        self._stop_workers = weakref.finalize(self, _stop, self._workers)
        atexit.register(self._stop_workers)  # before multiprocessing waits for its children

    def start(self) -> None:
        """Fork the workers now and not at the first `next`.

        Best while the process is small: they keep a copy of every page that it writes afterwards.
        """
        _start(self._workers)

    def __next__(self) -> "tuple[torch.Tensor, dict[int, Cursor]]":
        """The next micro-batch: (B, T + 1) uint16 (int32 for a large vocabulary), and the cursors of the
        lanes it moved.

        Raises:
            UserError: a document is bad and stops the run, or a cursor does not fit the corpus.
            OSError: the source cannot be read, or a worker was killed.
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


class _Sequence(NamedTuple):
    """T + 1 tokens, the lane that they come from, its cursor after them, and the documents that were left out
    on the way."""

    tokens: np.ndarray
    lane: int
    cursor: Cursor
    bad: Counter[str] | None


def _fill_in_turn(
    lanes: Mapping[int, Lane], turn: Sequence[int], block_size: int, dtype: np.dtype
) -> Iterator[_Sequence]:
    """Endless sequences of `lanes`, in the order `turn`. They are opened when the first is asked for."""
    open_lanes(list(lanes.values()))
    for number in cycle(turn):
        lane = lanes[number]
        block = np.empty(block_size + 1, dtype=dtype)
        cursor = lane.fill(block)
        bad = None
        if lane.bad:
            bad, lane.bad = lane.bad, Counter()
        yield _Sequence(block, number, cursor, bad)


def _unless_interrupted(sequences: Iterator[_Sequence]) -> Iterator[_Sequence]:
    while True:
        check_interrupted()
        yield next(sequences)


def _from_workers(workers: Sequence["_Worker"], turn: Sequence[int]) -> Iterator[_Sequence]:
    _start(workers)
    for number in cycle(turn):
        yield next(workers[number])


def _start(workers: Sequence["_Worker"]) -> None:
    for worker in workers:
        worker.start()


class _Chunk(NamedTuple):
    """Sequences as few large arrays, which go between processes several times faster than many small ones."""

    blocks: np.ndarray
    places: np.ndarray
    bad: list[Counter[str] | None]

    @classmethod
    def of(cls, sequences: Sequence[_Sequence]) -> "_Chunk":
        places = np.array([(sequence.lane, *sequence.cursor) for sequence in sequences])
        return cls(np.stack([s.tokens for s in sequences]), places, [s.bad for s in sequences])

    def sequences(self) -> Iterator[_Sequence]:
        for block, (lane, *cursor), bad in zip(self.blocks, self.places.tolist(), self.bad, strict=True):
            yield _Sequence(block, lane, Cursor(*cursor), bad)


class _Worker(Iterator[_Sequence]):
    """A process that makes `sequences`, up to `ahead` of them before they are asked for.

    It hands over errors in their place and outlives its parent by at most `PARENT_LOOK_SECONDS`.
    """

    def __init__(self, sequences: Iterator[_Sequence], ahead: int) -> None:
        self._sequences = sequences
        self._chunk = min(CHUNK, ahead)
        self._chunks_ahead = ahead // self._chunk
        self._queue: Any = None
        self._process: Any = None
        self._ready: Iterator[_Sequence] = iter(())

    def start(self) -> None:
        if self._process is not None:
            return
        # no process but the worker may hold the end that it writes to: so a killed worker is an EOFError
        context = multiprocessing.get_context("fork")
        self._queue = context.Queue(maxsize=self._chunks_ahead)
        self._process = context.Process(target=self._run, args=(os.getpid(),), daemon=True)
        self._process.start()
        self._queue._writer.close()

    def __next__(self) -> _Sequence:
        sequence = next(self._ready, None)
        if sequence is None:
            self._ready = self._receive()
            sequence = next(self._ready)
        return sequence

    def stop(self) -> None:
        """End the process at once; it holds nothing that could be lost."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._queue.close()

    def _receive(self) -> Iterator[_Sequence]:
        try:
            while True:
                try:
                    made = self._queue.get(timeout=LOOK_SECONDS)
                    break
                except queue.Empty:
                    check_interrupted()
        except (EOFError, OSError):  # the end of the pipe, also inside a message
            self._process.join()
            raise OSError(
                f"a process that reads the data was killed (exit code {self._process.exitcode}), perhaps for "
                "want of memory: lower data.workers or data.shuffle_window"
            ) from None
        if isinstance(made, Exception):
            raise made
        return made.sequences()

    def _run(self, parent: int) -> NoReturn:
        for signum in (signal.SIGINT, signal.SIGTERM):  # the parent decides when to stop, and kills
            signal.signal(signum, signal.SIG_IGN)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        chunk: list[_Sequence] = []
        try:
            with interruptible(never):  # the parent asks
                for sequence in self._sequences:
                    chunk.append(sequence)
                    if len(chunk) == self._chunk:
                        self._queue.put(_Chunk.of(chunk))
                        chunk = []
        except Exception as error:
            if chunk:
                self._queue.put(_Chunk.of(chunk))
            self._queue.put(portable(error))
        while True:
            time.sleep(60)


def _end_with(parent: int) -> NoReturn:
    while os.getppid() == parent:
        time.sleep(PARENT_LOOK_SECONDS)
    os._exit(0)


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.stop()
