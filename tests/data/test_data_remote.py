"""Sources at a URL: few bytes, drops that leave no trace, one sentence when patience ends."""

import gzip
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data import DataConfig
from data.sources import Documents, ParquetSource, jsonl, network
from data.sources.jsonl import JsonlSource
from data.sources.remote import footer_store
from model.errors import UserError
from tests.data.servers import ROWS, Server, json_lines, parquet_bytes, serving, texts
from tests.processes import fork_this, status_of


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network, "RETRY_SECONDS", (0,))
    monkeypatch.setattr(jsonl, "JSONL_DIR", tmp_path / "cache")
    monkeypatch.setattr(footer_store, "FOOTERS_DIR", tmp_path / "footers")


@pytest.fixture(params=[500, 6000], ids=["small groups", "one large group"])
def source(server: Server, request: pytest.FixtureRequest) -> ParquetSource:
    server.files["/rows.parquet"] = parquet_bytes(request.param)
    url = server.url + "/rows.parquet"
    return ParquetSource(DataConfig(source=url), [url])


def give_up_soon(source: ParquetSource) -> None:
    """Only where reading should fail: a machine that has much to do may answer later than this."""
    source.config = replace(source.config, timeout_s=0.3)


def fetched(server: Server) -> int:
    return sum(request.sent for request in server.requests)


def test_only_the_text_column_is_fetched(server: Server, source: ParquetSource) -> None:
    metadata = pq.read_metadata(io.BytesIO(server.files["/rows.parquet"]))
    groups = range(metadata.num_row_groups)
    column = sum(metadata.row_group(group).column(0).total_compressed_size for group in groups)
    tail = 2**16  # of which the footer is a part
    assert fetched(server) == tail
    assert texts(source) == ROWS
    assert fetched(server) == column + tail
    assert source.file_sizes == {source.name: len(server.files["/rows.parquet"])}


def test_a_shard_is_one_request(server: Server, source: ParquetSource) -> None:
    server.requests.clear()
    for shard in source.shards[:5]:
        source.read(shard)
    small = source.shards[0].rows == 500
    assert len(server.requests) == (5 if small else 1)  # the large group came in a piece of 2 MB
    assert {request.method for request in server.requests} <= {"GET"}


@pytest.mark.parametrize("fault", ["drop", "cut", 404, 429, 500, 503])
def test_no_fault_of_the_network_leaves_a_trace(
    server: Server, source: ParquetSource, fault: int | str
) -> None:
    found = []
    for number, shard in enumerate(source.shards):
        server.faults = [fault] * (number % 3)
        found += source.read(shard).kept
    assert found == ROWS
    shutil.rmtree(footer_store.FOOTERS_DIR)
    server.faults = [fault] * (2 * (fault != 404))  # which a run that begins takes for an answer
    assert ParquetSource(DataConfig(source=source.name), [source.name]).fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("fault", "why"),
    [("drop", "ServerDisconnectedError"), (503, "503, message")],
)
@pytest.mark.usefixtures("large_shards")
def test_patience_ends_with_a_sentence_and_the_source_goes_on_afterwards(
    server: Server, source: ParquetSource, fault: int | str, why: str
) -> None:
    assert source.read(source.shards[0]).kept
    give_up_soon(source)
    server.faults = [fault] * 99_999
    for shard in source.shards[:1], source.shards[3:4]:
        with pytest.raises(ConnectionError) as caught:
            source.read(shard[0])
        message = str(caught.value)
        assert (
            message.startswith(f"{source.name} cannot be read (") and why in message and "\n" not in message
        )
        assert re.search(
            r"; tried for \d+ s\): once it can be, the same command goes on from there$", message
        )
    with pytest.raises(ConnectionError, match=r"tried for \d+ s"):
        ParquetSource(source.config, [source.name])
    server.faults = []
    source.config = replace(source.config, timeout_s=60)
    assert texts(source) == ROWS


def test_a_file_that_lost_its_end_is_damaged_only_after_all_tries(
    server: Server, source: ParquetSource
) -> None:
    whole = server.files["/rows.parquet"]
    assert source.read(source.shards[0]).kept
    server.files["/rows.parquet"] = whole[: len(whole) // 3]
    give_up_soon(source)
    found = source.read(source.shards[-1])
    assert found == Documents([], {"unreadable": source.shards[-1].rows})  # type: ignore[arg-type]
    assert len(server.requests) >= 4


def test_a_server_that_compresses_is_asked_not_to(server: Server) -> None:
    server.files["/rows.parquet"] = parquet_bytes(500)
    server.files["/rows.jsonl"] = json_lines()
    server.compresses = True
    assert texts(ParquetSource(DataConfig(source="u"), [server.url + "/rows.parquet"])) == ROWS
    assert texts(JsonlSource(DataConfig(source="u"), [server.url + "/rows.jsonl"])) == ROWS


def test_a_server_without_ranges_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/rows.parquet"] = parquet_bytes(500)
    server.files["/rows.jsonl"] = json_lines()
    server.ranges = False
    monkeypatch.setattr("data.sources.content.PIECE_BYTES", 100_000)
    for kind, name in (ParquetSource, "rows.parquet"), (JsonlSource, "rows.jsonl"):
        with pytest.raises(UserError) as caught:
            kind(DataConfig(source="u"), [f"{server.url}/{name}"])
        assert (
            str(caught.value)
            == f"data.source: the server of {server.url}/{name} does not send parts of a file: download it"
        )


def test_a_url_that_is_not_there_and_one_that_is_forbidden(server: Server) -> None:
    for kind in ParquetSource, JsonlSource:
        with pytest.raises(ConnectionError, match=r"/none cannot be read \([^;]*404[^;]*\): once"):
            kind(DataConfig(source="u"), [server.url + "/none"])
        server.requests.clear()
        server.faults = [403] * 9
        with pytest.raises(ConnectionError, match=r"403[^;]*\): once"):
            kind(DataConfig(source="u"), [server.url + "/none"])
        server.faults = []


def test_a_server_that_is_not_there(server: Server) -> None:
    with pytest.raises(
        ConnectionError, match=r"cannot be read \(ClientConnectorError: .*; tried for \d+ s\)"
    ):
        ParquetSource(DataConfig(source="u", timeout_s=0.2), ["http://127.0.0.1:1/rows.parquet"])


def test_a_server_that_stalls_is_asked_again(server: Server) -> None:
    server.files["/rows.parquet"] = parquet_bytes(6000)
    source = ParquetSource(DataConfig(source="u", timeout_s=1.6), [server.url + "/rows.parquet"])
    server.faults = ["stall", "stall"]
    assert texts(source) == ROWS
    assert not server.faults


def test_forked_workers_read_on_from_a_url(server: Server, source: ParquetSource) -> None:
    assert source.read(source.shards[0]).kept == ROWS[: source.shards[0].rows]

    def read_on(first: int) -> None:
        for shard in source.shards[first::2]:
            begin = shard.group * 500 + shard.first_row
            assert source.read(shard).kept == ROWS[begin : begin + shard.rows]

    children = [fork_this(read_on, first) for first in (1, 2)]
    assert texts(source) == ROWS
    assert [status_of(child) for child in children] == [0, 0]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("fault", ["drop", "cut", 503])
def test_json_lines_at_a_url_are_fetched_once_whatever_happens(
    server: Server, suffix: str, fault: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = gzip.compress(json_lines()) if suffix else json_lines()
    monkeypatch.setattr("data.sources.content.PIECE_BYTES", len(content) // 6)
    server.files[f"/rows.jsonl{suffix}"] = content
    url = f"{server.url}/rows.jsonl{suffix}"
    server.faults = [200, fault, 200, 200, fault, fault, 200, fault]
    source = JsonlSource(DataConfig(source=url), [url])
    assert not server.faults
    assert texts(source) == ROWS and source.file_sizes == {url: len(content)}
    server.requests.clear()
    assert texts(JsonlSource(DataConfig(source=url), [url])) == ROWS
    assert fetched(server) == 0


def test_json_lines_that_stay_away_are_a_sentence_and_leave_nothing(server: Server) -> None:
    server.files["/rows.jsonl"] = json_lines()
    url = f"{server.url}/rows.jsonl"
    server.faults = [200] + ["drop"] * 99_999
    with pytest.raises(ConnectionError, match=r"rows.jsonl cannot be read \(.*; tried for \d+ s\)"):
        JsonlSource(DataConfig(source=url, timeout_s=0.3), [url])
    assert [file.name for file in jsonl.JSONL_DIR.iterdir()] == ["lock"]
    server.faults = []
    assert texts(JsonlSource(DataConfig(source=url), [url])) == ROWS


def test_many_files_of_json_lines_are_fetched_by_many_processes(server: Server) -> None:
    urls = [f"{server.url}/{number}.jsonl" for number in range(6)]
    for number in range(6):
        server.files[f"/{number}.jsonl"] = json_lines().replace(b"Text ", b"%d " % number)
    server.faults = ["drop", "cut"] * 6
    source = JsonlSource(DataConfig(source="u"), urls)
    assert texts(source) == [text.replace("Text ", f"{number} ") for number in range(6) for text in ROWS]
    assert list(source.file_sizes) == urls


def test_json_lines_that_change_are_fetched_again(server: Server) -> None:
    url = f"{server.url}/rows.jsonl"
    for first in "ab":
        server.files["/rows.jsonl"] = b'{"text": "' + first.encode() + b' text"}\n'
        assert texts(JsonlSource(DataConfig(source=url), [url])) == [first + " text"]
