"""Workers that are killed, stopped or hang start again where they stood, and what is read stays the same."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import psutil
import pytest

from data import Corpus, Cursor, DataConfig, LaneLoader, open_tokenizer
from model.errors import UserError
from tests.data.corpora import MemorySource, make_corpus, make_texts

CONFIG = DataConfig(source="memory", lanes=8, seed=7, workers=2, prefetch=32, timeout_s=0.6)


def loader(
    workers: int, corpus: Corpus | None = None, block_size: int = 16, say: Callable[[str], object] = print
) -> LaneLoader:
    config = replace(CONFIG, workers=workers)
    return LaneLoader(corpus or make_corpus(), config, block_size=block_size, micro_batch=4, say=say)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture(autouse=True)
def of_earlier_tests() -> Iterator[None]:
    """Workers of loaders that other tests have left: no fault is meant for them."""
    EARLIER.update(child.pid for child in children())
    yield
    EARLIER.clear()


EARLIER: set[int] = set()


def processes(name: str) -> list[psutil.Process]:
    """By descent: a worker that was just forked still has the name of its starter."""
    starters = [child for child in psutil.Process().children() if child.pid not in EARLIER]
    starters = [child for child in starters if child.name() == "data starter"]
    if name == "data starter":
        return starters
    return [worker for starter in starters for worker in starter.children()]


def assert_same(
    found: LaneLoader, expected: LaneLoader, batches: int, fault: Callable[[int], object] = lambda batch: None
) -> None:
    """That each micro-batch, the cursors after it and the counted bad documents are the same."""
    for batch in range(batches):
        fault(batch)
        (blocks, cursors), (expected_blocks, expected_cursors) = next(found), next(expected)
        assert np.array_equal(blocks.numpy(), expected_blocks.numpy()), batch
        assert cursors == expected_cursors
        assert found.bad == expected.bad


def send(signum: int, name: str = "data worker", which: random.Random | None = None) -> None:
    there = [process for process in processes(name) if process.status() != psutil.STATUS_ZOMBIE]
    if there:
        (which.choice(there) if which else there[0]).send_signal(signum)


@pytest.mark.parametrize("block_size", [16, 10_000])  # the latter in messages that a pipe holds in pieces
def test_workers_killed_at_random_moments_change_nothing(block_size: int) -> None:
    moments = random.Random(block_size)

    def fault(batch: int) -> None:
        if moments.random() < 0.2:
            time.sleep(moments.random() / 50)
            send(signal.SIGKILL, which=moments)

    batches = loader(2, block_size=block_size)
    assert_same(batches, loader(0, block_size=block_size), 120 if block_size == 16 else 25, fault)
    assert batches.restarts >= 2
    assert sum(batches.bad.values()) > 10


def test_stopped_workers_are_ended_and_change_nothing() -> None:
    said: list[str] = []
    batches = loader(2, say=said.append)

    def fault(batch: int) -> None:
        if batch in (3, 40):
            send(signal.SIGSTOP)

    assert_same(batches, loader(0), 80, fault)
    assert batches.restarts == len(said) == 2
    for sentence in said:
        assert sentence.startswith("a process that reads the data did nothing for 1 s and was ended")


def test_a_worker_that_follows_continues_from_given_cursors() -> None:
    first = loader(0)
    cursors: dict[int, Cursor] = {}
    for _ in range(7):
        cursors |= next(first)[1]
    found, expected = (
        LaneLoader(
            make_corpus(),
            replace(CONFIG, workers=workers),
            block_size=16,
            micro_batch=4,
            first_sequence=28,
            cursors=cursors,
        )
        for workers in (3, 0)
    )
    found.start()
    send(signal.SIGKILL)
    assert_same(found, expected, 40, lambda batch: batch % 7 or send(signal.SIGKILL))
    assert found.restarts >= 1


class Faulty(MemorySource):
    """Does `fault` when shard 9 is read, so many times in all processes together."""

    def __init__(self, times: int, fault: Callable[[], object]) -> None:
        self.left = multiprocessing.Value("q", times)
        self.fault = fault
        super().__init__(make_texts())

    def _rows(self, shard):  # type: ignore[no-untyped-def]
        if shard.index == 9:
            with self.left.get_lock():
                self.left.value -= 1
                is_faulty = self.left.value >= 0
            if is_faulty:
                self.fault()
        return super()._rows(shard)


def faulty(times: int, fault: Callable[[], object]) -> Corpus:
    source = Faulty(times, fault)
    return Corpus(source, open_tokenizer("gpt2"), source.shards)


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("fault", [kill_oneself, lambda: time.sleep(600)], ids=["dies", "hangs"])
def test_a_read_that_fails_once_costs_a_restart(fault: Callable[[], object]) -> None:
    batches = loader(2, faulty(1, fault))
    assert_same(batches, loader(0), 60)
    assert batches.restarts == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            kill_oneself,
            r"was killed \(SIGKILL\), perhaps for want of memory, 4 times in a row: lower data\.w",
        ),
        (lambda: os._exit(7), r"has ended \(exit code 7\), 4 times in a row: lower data\.workers"),
        (lambda: time.sleep(600), r"did nothing for 1 s and was ended, 4 times in a row: see whether the d"),
    ],
    ids=["killed", "ends", "hangs"],
)
def test_a_worker_that_always_dies_ends_in_a_sentence(fault: Callable[[], object], words: str) -> None:
    batches = loader(1, faulty(1000, fault))
    with pytest.raises(OSError, match="^a process that reads the data " + words):
        for _ in range(1000):
            next(batches)
    assert batches.restarts == 3


def test_an_error_that_was_handed_over_starts_nothing_again() -> None:
    def fail() -> None:
        raise UserError("it is bad")

    batches = loader(1, faulty(1000, fail))
    with pytest.raises(UserError, match="it is bad"):
        for _ in range(1000):
            next(batches)
    worker = batches._workers[0]
    send(signal.SIGKILL)
    with pytest.raises(UserError, match="it is bad"):
        next(worker)
    assert batches.restarts == 0


def test_a_worker_that_computes_for_long_is_left_alone() -> None:
    def compute() -> None:
        end = time.monotonic() + 4 * CONFIG.timeout_s
        while time.monotonic() < end:
            pass

    batches = loader(1, faulty(1, compute))
    assert_same(batches, loader(0), 40)
    assert batches.restarts == 0


def test_without_the_process_that_forks_workers_they_go_on() -> None:
    batches = loader(2)

    def fault(batch: int) -> None:
        if batch in (2, 30):
            send(signal.SIGKILL, "data starter")
        if batch in (10, 50):
            send(signal.SIGKILL)

    assert_same(batches, loader(0), 80, fault)
    assert batches.restarts == 2


def test_signals_to_all_processes_end_no_worker() -> None:
    batches = loader(2)
    next(batches)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        for process in [*processes("data starter"), *processes("data worker")]:
            process.send_signal(signum)
    for _ in range(50):
        next(batches)
    assert batches.restarts == 0
