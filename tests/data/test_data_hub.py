"""A data set on the hub, read through every fault of the network."""

import gzip
import multiprocessing
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from data import DataConfig, open_source, open_tokenizer
from data.sources import ParquetSource, dataset_files, documents, jsonl, network
from data.sources.remote import keep_hub_files
from tests.data.servers import COMMIT, ROWS, Server, hub, json_lines, parquet_bytes, serving, texts
from tests.processes import fork_this, status_of


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network, "RETRY_SECONDS", (0, 0, 0))
    monkeypatch.setattr(jsonl, "JSONL_DIR", tmp_path / "cache")


def read_from_hub(url: str) -> None:
    """Runs in a process of its own, where `HF_ENDPOINT` was `url` at import."""

    def fail(fault: int | str, times: int) -> None:
        urllib.request.urlopen(f"{url}/faults/{fault}/{times}").close()

    time.sleep = lambda _: None  # the hub's client waits too
    network.RETRY_SECONDS = (0,)
    documents.SHARDS = 1e-3  # type: ignore[assignment]  # as if these files were large
    config = DataConfig(source="org/name", subset="sample-10BT", revision="v1", timeout_s=1.5)
    source = open_source(config, open_tokenizer("bytes"))
    assert isinstance(source, ParquetSource)
    assert list(source.file_sizes) == [
        f"hf://datasets/org/name@{COMMIT}/sample/10BT/{name}_00000.parquet" for name in ("000", "001")
    ]
    assert len(source.shards) == 12 + 6
    assert texts(source) == ROWS * 2
    for fault in ("drop", "cut", 503, 429):
        found = []
        for number, shard in enumerate(source.shards):
            fail(fault, number % 9)
            found += source.read(shard).kept
        assert found == ROWS * 2, fault
    fail("drop", 99_999)
    with pytest.raises(
        ConnectionError, match=r"^hf://datasets/org/name@.* cannot be read \(.*tried for \d+ s\)"
    ):
        source.read(source.shards[0])
    for fault in "hang", "trickle":
        fail(fault, 99_999)
        with pytest.raises(ConnectionError, match=r"cannot be read \(TimeoutError: .*; tried for \d+ s\)"):
            source.read(source.shards[0])
    fail("hang", 99_999)
    with pytest.raises(ConnectionError, match=r"hub cannot be reached \(\w*Timeout\w*\)"):
        open_source(config, open_tokenizer("bytes"))
    fail("drop", 0)

    def read_all() -> None:
        assert texts(source) == ROWS * 2

    child = fork_this(read_all)
    read_all()
    assert status_of(child) == 0


def read_table_from_hub(url: str) -> None:
    """As `read_from_hub`, of a format that `datasets` reads, from files that the hub's client downloads."""

    def fail(fault: int | str, times: int) -> None:
        urllib.request.urlopen(f"{url}/faults/{fault}/{times}").close()

    time.sleep = lambda _: None
    network.RETRY_SECONDS = (0,)

    def opened(fault: str, timeout_s: float, after: int | str = 200) -> list[object]:
        """Read, where requests fail while the file is downloaded, and afterwards."""

        def keep(paths: list[str], timeout_s: float) -> None:
            fail(fault, 99_999)
            try:
                keep_hub_files(paths, timeout_s)
            finally:
                fail(after, 99_999)

        dataset_files.keep_hub_files = keep
        config = DataConfig(source="org/table", timeout_s=timeout_s)
        source = open_source(config, open_tokenizer("bytes"))
        fail(200, 0)
        return texts(source)  # type: ignore[arg-type]

    sentence = (
        r"^hf://datasets/org/table@\w+/rows\.csv cannot be read \(.*; tried for \d+ s\): once it can be"
    )
    for fault in "hang", "trickle", "mute", "drip", "drop":
        with pytest.raises(ConnectionError, match=sentence):
            opened(fault, timeout_s=1)
    assert opened("200", timeout_s=60, after="drop") == ROWS


def test_a_table_of_the_hub_comes_or_ends_in_a_sentence(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = "".join(f'"{row}"\n' for row in ["text", *ROWS])
    hub(server, "org/table", {"rows.csv": rows.encode()}, {"default": "*.csv"})
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(read_table_from_hub, server.url).result(timeout=120)


def test_a_subset_of_a_hub_data_set_is_read_through_every_fault(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {
        "data/2020/000.parquet": parquet_bytes(6000),
        "sample/10BT/000_00000.parquet": parquet_bytes(500),
        "sample/10BT/001_00000.parquet": parquet_bytes(6000),
    }
    hub(server, "org/name", files, {"default": "data/*/*", "sample-10BT": "sample/10BT/*"})
    hub(server, "org/lines", {"rows.jsonl.gz": gzip.compress(json_lines())}, {"default": "*.gz"})
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(read_from_hub, server.url).result(timeout=120)
    assert not [request for request in server.requests if request.path.startswith("/storage/data")]
