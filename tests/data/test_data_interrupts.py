"""Who waits for data asks whether it still should, wherever the waiting is done."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data import Corpus, DataConfig, Interrupted, LaneLoader, interruptible, open_data, open_tokenizer
from data.sources.remote import footer_store
from tests.data.corpora import MemorySource, make_corpus, make_texts
from tests.data.servers import Server, parquet_bytes, serving

CONFIG = DataConfig(source="memory", lanes=8, seed=7, workers=2, prefetch=32)
LONGEST_WAIT_SECONDS = 5
"""The bound that a run has to notice that it should stop; each of these waits for far longer by itself."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setattr(footer_store, "FOOTERS_DIR", tmp_path / "footers")
    with serving() as server:
        server.files["/rows.parquet"] = parquet_bytes(500)
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


@pytest.mark.parametrize("fault", ["hang", "drop", 503])
def test_opening_data_ends_when_it_is_interrupted(server: Server, fault: str | int) -> None:
    server.faults = [fault] * 1000
    request = Request()
    with pytest.raises(Interrupted), interruptible(request):
        open_data(DataConfig(source=f"{server.url}/rows.parquet", tokenizer="bytes"))
    request.check()


def test_a_loader_without_workers_asks_before_each_sequence() -> None:
    asked = []
    loader = LaneLoader(
        make_corpus(),
        replace(CONFIG, workers=0),
        block_size=16,
        micro_batch=1,
        interrupted=lambda: len(asked) == 3 or asked.append(None) is not None,
    )
    for _ in range(3):
        next(loader)
    with pytest.raises(Interrupted):
        next(loader)
