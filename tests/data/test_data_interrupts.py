"""Who waits for data asks whether it still should, wherever the waiting is done."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest
from filelock import FileLock
from fsspec.asyn import get_loop

from data import Corpus, DataConfig, Interrupted, LaneLoader, Source, interruptible, open_data, open_tokenizer
from data.cache import CachedSource
from data.sources import jsonl
from data.sources.remote import footer_store
from data.tokenizer.kinds import ByteTokenizer
from tests.data.corpora import MemorySource, make_corpus, make_texts
from tests.data.parquet_files import expected, opened, write
from tests.data.servers import Server, json_lines, parquet_bytes, serving

CONFIG = DataConfig(source="memory", lanes=8, seed=7, workers=2, prefetch=32)
LONGEST_WAIT_SECONDS = 5
"""The bound that a run has to notice that it should stop; each of these waits for far longer by itself."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setattr(footer_store, "FOOTERS_DIR", tmp_path / "footers")
    with serving() as server:
        server.files["/rows.parquet"] = parquet_bytes(500)
        server.files["/rows.jsonl"] = json_lines()
        yield server


class Request:
    """Becomes true some time after it is first asked."""

    def __init__(self) -> None:
        self.asked_at: list[float] = []

    def __call__(self) -> bool:
        self.asked_at.append(time.monotonic())
        return self.asked_at[-1] > self.asked_at[0] + 0.5

    def check(self) -> None:
        """It was asked several times per second, and heeded at once."""
        assert len(self.asked_at) >= 3
        assert time.monotonic() < self.asked_at[0] + LONGEST_WAIT_SECONDS


def check_no_read_is_under_way() -> None:
    """asyncio would complain of it when the process ends: "Task was destroyed but it is pending!"."""

    def reads() -> list[str]:
        tasks = map(repr, asyncio.all_tasks(get_loop()))
        return [task for task in tasks if "_http_stream" in task]

    end = time.monotonic() + LONGEST_WAIT_SECONDS
    while reads() and time.monotonic() < end:
        time.sleep(0.01)
    assert reads() == []


class Stuck(MemorySource):
    """Its shard 9 is never read to its end."""

    def _rows(self, shard):  # type: ignore[no-untyped-def]
        if shard.index == 9:
            time.sleep(600)
        return super()._rows(shard)


def test_waiting_for_a_worker_ends_when_it_is_interrupted() -> None:
    source = Stuck(make_texts())
    corpus = Corpus(source, open_tokenizer("gpt2"), source.shards)
    request = Request()
    loader = LaneLoader(corpus, CONFIG, block_size=16, micro_batch=1, interrupted=request)
    with pytest.raises(Interrupted):
        for _ in range(10_000):
            next(loader)
    request.check()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", ["hang", "trickle", "drop", 503])
def test_waiting_for_the_network_ends_when_it_is_interrupted(
    server: Server, fault: str | int, workers: int
) -> None:
    config = DataConfig(source=f"{server.url}/rows.parquet", tokenizer="bytes", lanes=2, workers=workers)
    corpus, _ = open_data(config)
    server.faults = [fault] * 1000
    request = Request()
    loader = LaneLoader(corpus, config, block_size=64, micro_batch=4, interrupted=request)
    with pytest.raises(Interrupted):
        next(loader)
    request.check()
    check_no_read_is_under_way()


@pytest.mark.parametrize("fault", ["hang", "drop", 503])
def test_opening_data_ends_when_it_is_interrupted(server: Server, fault: str | int) -> None:
    server.faults = [fault] * 1000
    request = Request()
    with pytest.raises(Interrupted), interruptible(request):
        open_data(DataConfig(source=f"{server.url}/rows.parquet", tokenizer="bytes"))
    request.check()
    check_no_read_is_under_way()


class Slow(ByteTokenizer):
    """Takes half a minute for a window of documents."""

    def _encode(self, text: str) -> np.ndarray:
        time.sleep(0.05)
        return super()._encode(text)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_tokenising_a_window_ends_when_it_is_interrupted(
    packing: Literal["concat", "best_fit"], cached: bool, tmp_path: Path
) -> None:
    tokenizer = Slow()
    source: Source = MemorySource([[f"{shard} {row}" for row in range(600)] for shard in range(2)])
    if cached:
        source = CachedSource(source, tokenizer, str(tmp_path))
    corpus = Corpus(source, tokenizer, source.shards)
    config = replace(CONFIG, lanes=1, workers=0, packing=packing)
    request = Request()
    loader = LaneLoader(corpus, config, block_size=10_000, micro_batch=1, interrupted=request)
    with pytest.raises(Interrupted):
        next(loader)
    request.check()
    assert not list(tmp_path.glob("*/*"))  # neither a shard nor a part of one is kept


def test_passing_over_rows_ends_when_it_is_interrupted(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.parquet", group=25_000))
    with pytest.raises(Interrupted), interruptible(lambda: True):
        source.read(source.shards[-1])
    assert source.read(source.shards[-1]) == expected(source.shards[-1], groups=25_000)


def test_waiting_for_another_worker_ends_when_it_is_interrupted() -> None:
    others = set(psutil.Process().children())
    request = Request()
    loader = LaneLoader(make_corpus(), CONFIG, block_size=16, micro_batch=1, interrupted=request)
    loader.start()
    (starter,) = set(psutil.Process().children()) - others  # the workers are its children
    starter.suspend()
    for worker in starter.children():
        worker.kill()
    request.asked_at.clear()
    with pytest.raises(Interrupted):
        for _ in range(10_000):
            next(loader)
    request.check()
    starter.resume()


@pytest.mark.parametrize("name", ["/rows.parquet", "/rows.jsonl"])
def test_the_loop_waits_for_no_lock(
    server: Server, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who holds one may be stopped; only starts, which end at once, may wait for one."""
    monkeypatch.setattr(jsonl, "JSONL_DIR", tmp_path / "jsonl")
    config = DataConfig(
        source=server.url + name, tokenizer="bytes", lanes=2, workers=0, cache_dir=str(tmp_path / "cache")
    )
    corpus, _ = open_data(config)

    def acquire(*_: object, **__: object) -> None:
        raise AssertionError("a lock is waited for")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(AssertionError):
        open_data(replace(config, text_column="id"))
    loader = LaneLoader(corpus, config, block_size=50_000, micro_batch=4)
    epochs = 0
    while epochs < 2:
        epochs = max(cursor.epoch for cursor in next(loader)[1].values())


def test_a_loader_without_workers_asks_before_each_sequence() -> None:
    taken: list[object] = []
    loader = LaneLoader(
        make_corpus(),
        replace(CONFIG, workers=0),
        block_size=16,
        micro_batch=1,
        interrupted=lambda: len(taken) == 3,
    )
    for _ in range(3):
        taken.append(next(loader))
    with pytest.raises(Interrupted):
        next(loader)
