"""The loader's processes: their errors come in their place, and nothing is left."""

import gc
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from data import Corpus, Cursor, DataConfig, LaneLoader, open_tokenizer
from model.errors import UserError
from tests.data.corpora import MemorySource, make_corpus, make_texts, reference

CONFIG = DataConfig(source="memory", lanes=8, seed=7, workers=2, prefetch=32)
BLOCK_SIZE = 16


def loader(corpus: Corpus | None = None, config: DataConfig = CONFIG, micro_batch: int = 1) -> LaneLoader:
    return LaneLoader(corpus or make_corpus(), config, block_size=BLOCK_SIZE, micro_batch=micro_batch)


def take(batches: LaneLoader, count: int) -> np.ndarray:
    return np.concatenate([next(batches)[0].numpy() for _ in range(count)])


def test_a_stopped_loader_leaves_no_process_and_no_open_file() -> None:
    def left() -> tuple[int, int]:
        gc.collect()  # of what earlier tests left, too
        return len(os.listdir("/proc/self/fd")), len(multiprocessing.active_children())

    next(loader(config=replace(CONFIG, workers=1)))  # what opens once stays open
    before = left()
    for number in range(30):
        batches = loader(config=replace(CONFIG, workers=1 + number % 3))
        if number % 5:
            next(batches)
        del batches
    files, processes = left()
    assert files <= before[0] and processes == before[1]


def test_loaders_side_by_side_do_not_disturb_each_other() -> None:
    configs = [replace(CONFIG, seed=seed, workers=seed) for seed in (1, 2, 3)]
    loaders = [loader(config=config) for config in configs]
    found: list[list[np.ndarray]] = [[], [], []]
    for _ in range(100):
        for number, batches in enumerate(loaders):
            found[number].append(take(batches, 1))
    for config, blocks in zip(configs, found, strict=True):
        assert np.array_equal(np.concatenate(blocks), reference(make_texts(), config, BLOCK_SIZE, 100))


class Failing(MemorySource):
    """Raises `error` when shard 9 is read."""

    error: Exception = ValueError()

    def _rows(self, shard):  # type: ignore[no-untyped-def]
        if shard.index == 9:
            raise self.error
        return super()._rows(shard)


class Odd(ValueError):
    """One that can be sent to another process but not be made there again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (UserError("It is wrong"), UserError, "^It is wrong$"),
        (ValueError("It is bad."), ValueError, "^It is bad.$"),
        (ConnectionError("It is away."), ConnectionError, "^It is away.$"),
        (FileNotFoundError(2, "no such file", "a.parquet"), FileNotFoundError, "no such file: 'a.parquet'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), UnicodeDecodeError, "can't decode byte 0xff"),
        (KeyError("key"), RuntimeError, "KeyError: 'key'"),
        (MemoryError(), RuntimeError, "MemoryError"),
        (Odd("It is", "odd"), RuntimeError, "Odd: It is odd"),
        (ValueError("It cannot be sent", lambda: 0), RuntimeError, "It cannot be sent"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_comes_in_its_place(error: Exception, kind: type[Exception], words: str) -> None:
    def until_error(workers: int) -> tuple[int, np.ndarray]:
        source = Failing(make_texts())
        source.error = error
        batches = loader(
            Corpus(source, open_tokenizer("gpt2"), source.shards), replace(CONFIG, workers=workers)
        )
        found = []
        with pytest.raises(kind if workers else type(error), match=words if workers else None):
            for _ in range(10_000):
                found.append(take(batches, 1))
        return len(found), np.concatenate(found)

    (count, blocks), (count_in_loop, blocks_in_loop) = until_error(1), until_error(0)
    assert count == count_in_loop > 3 and count % 16
    assert np.array_equal(blocks, blocks_in_loop)


class Counting(MemorySource):
    """Counts in shared memory how often a shard was read, as other processes do it."""

    def __init__(self, texts: list[list[str | None]]) -> None:
        self.count = multiprocessing.Value("q", 0)
        super().__init__(texts)

    def _rows(self, shard) -> Sequence[str | None]:  # type: ignore[no-untyped-def]
        with self.count.get_lock():
            self.count.value += 1
        return super()._rows(shard)


@pytest.mark.parametrize("prefetch", [1, 3, 16, 40])
def test_a_worker_makes_no_more_ahead_than_it_may(prefetch: int) -> None:
    block = "word " * (BLOCK_SIZE + 1)  # a shard is a document of about one sequence
    source = Counting([[block] for _ in range(13)])
    batches = loader(
        Corpus(source, open_tokenizer("gpt2"), source.shards),
        replace(CONFIG, lanes=1, workers=1, prefetch=prefetch),
    )
    next(batches)
    end = time.monotonic() + 40
    while source.count.value <= prefetch and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.5)  # in which it could make more
    # what it has ready, the sequences that are on their way, and those that wait to be sent
    assert prefetch < source.count.value <= prefetch + 3 * min(prefetch, 16)


def test_lanes_without_a_cursor_begin_at_their_beginning() -> None:
    _, after = next(loader(micro_batch=8))
    batches = LaneLoader(
        make_corpus(),
        CONFIG,
        block_size=BLOCK_SIZE,
        micro_batch=8,
        first_sequence=8,
        cursors={lane: after[lane] for lane in (1, 3, 6)} | {5: Cursor()},
    )
    order = reference(make_texts(), CONFIG, BLOCK_SIZE, 16)
    expected = [order[8 + lane] if lane in (1, 3, 6) else order[lane] for lane in range(8)]
    assert np.array_equal(take(batches, 1), expected)
