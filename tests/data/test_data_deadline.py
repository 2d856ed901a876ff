"""`data.timeout_s`: a source that fails, hangs or trickles ends in one sentence; one that is slow is read."""

import gzip
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from data import DataConfig, LaneLoader, open_data
from data.sources import ParquetSource, jsonl, network
from data.sources.jsonl import JsonlSource
from data.sources.remote import footer_store, ranges
from model.errors import UserError
from tests.data.servers import ROWS, Server, json_lines, parquet_bytes, serving, texts

LONGEST_TEST_SECONDS = 30
"""Far more than any of these takes, and far less than the 60 s for which a server hangs."""


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.files["/rows.parquet"] = parquet_bytes(500)
        server.files["/rows.jsonl"] = json_lines()
        server.files["/rows.jsonl.gz"] = gzip.compress(json_lines())
        server.files["/rows.jsonl.zst"] = zstandard.compress(json_lines())
        yield server


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(network, "RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(jsonl, "JSONL_DIR", tmp_path / "cache")
    monkeypatch.setattr(footer_store, "FOOTERS_DIR", tmp_path / "footers")
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < LONGEST_TEST_SECONDS


@pytest.mark.parametrize(("fault", "why"), [("hang", "nothing"), ("trickle", "only ")])
def test_a_row_group_that_does_not_come_ends_in_a_sentence(server: Server, fault: str, why: str) -> None:
    url = server.url + "/rows.parquet"
    source = ParquetSource(DataConfig(source=url, timeout_s=1), [url])
    server.faults = [fault] * 1000
    with pytest.raises(ConnectionError) as error:
        source.read(source.shards[3])
    assert f"{url} cannot be read (TimeoutError: {why}" in str(error.value)
    assert re.search(r"came for \d+ s; tried for \d+ s\): once it can be", str(error.value))
    server.faults = []
    assert texts(source) == ROWS


@pytest.mark.parametrize("name", ["/rows.parquet", "/rows.jsonl", "/rows.jsonl.gz", "/rows.jsonl.zst"])
@pytest.mark.parametrize("fault", ["hang", "trickle", "mute", "drip"])
def test_a_start_that_does_not_come_ends_in_a_sentence(server: Server, fault: str, name: str) -> None:
    kind = ParquetSource if name == "/rows.parquet" else JsonlSource
    for answered in (1, 0):  # the size, or nothing
        server.faults = [200] * answered + [fault] * 1000
        with pytest.raises(ConnectionError) as error:
            kind(DataConfig(source="u", timeout_s=0.3), [f"{server.url}{name}?Signature=secret"])
        assert re.fullmatch(
            rf"{re.escape(server.url + name)} cannot be read \(TimeoutError: .* came for \d+ s; tried for "
            r"\d+ s\): once it can be, the same command goes on from there",
            str(error.value),
        )


def test_a_worker_hands_on_the_end(server: Server) -> None:
    config = DataConfig(
        source=server.url + "/rows.parquet", tokenizer="bytes", lanes=2, timeout_s=1.5, prefetch=16
    )
    corpus, _ = open_data(config)
    loader = LaneLoader(corpus, config, block_size=64, micro_batch=4)
    next(loader)
    server.faults = ["hang"] * 1000
    with pytest.raises(ConnectionError, match=r"\(TimeoutError: nothing came for \d+ s; tried for \d+ s\)"):
        for _ in range(100_000):
            next(loader)


def test_a_slow_line_is_no_failure(server: Server) -> None:
    url = server.url + "/rows.parquet"
    source = ParquetSource(DataConfig(source=url, timeout_s=1.2), [url])
    server.requests.clear()
    server.faults = ["slow"]
    begin = time.monotonic()
    shard = source.shards[0]
    assert source.read(shard).kept == ROWS[: shard.rows]
    assert time.monotonic() - begin > 1.2
    assert len(server.requests) == 1


def test_what_has_come_is_not_asked_for_again(server: Server) -> None:
    url = server.url + "/rows.parquet"
    size = len(server.files["/rows.parquet"])
    server.faults = ["cut", 503, "cut", "drop", "cut"]
    content = ranges.read_range(url, {}, 1000, size, 60).to_pybytes()
    assert content == server.files["/rows.parquet"][1000:]
    starts = [int((request.range or "").removeprefix("bytes=").split("-")[0]) for request in server.requests]
    half, quarter, eighth = ((size - 1000) // part for part in (2, 4, 8))
    expected = [0, half, half, half + quarter, half + quarter, half + quarter + eighth]
    assert all(abs(start - 1000 - right) <= 3 for start, right in zip(starts, expected, strict=True))


def test_storage_of_another_kind_has_the_same_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    filesystem = fsspec.filesystem("memory")
    content = os.urandom(3_000_000)
    filesystem.pipe_file("/rows.bin", content)
    assert ranges.read_range("memory://rows.bin", {}, 5, 2_999_999, 1).to_pybytes() == content[5:-1]
    assert ranges.read_range("memory://rows.bin", {}, 2_999_990, 3_000_100, 1).to_pybytes() == content[-10:]
    monkeypatch.setattr(type(filesystem), "cat_file", lambda *_, **__: time.sleep(60))
    with pytest.raises(
        ConnectionError, match=r"memory://rows.bin cannot be read \(TimeoutError: nothing came"
    ):
        ranges.read_range("memory://rows.bin", {}, 0, 10, 0.4)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(UserError, match=r"^data\.timeout_s is .*, but it must be a number above 0$"):
        DataConfig(timeout_s=seconds)
