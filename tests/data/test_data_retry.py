"""Retries: what the network does is tried again, what a file or a user does is not; nothing is swallowed."""

import bz2
import gzip
import io
import logging
import lzma
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import httpx
import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import zstandard
from fsspec.exceptions import FSTimeoutError
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

from data.sources import network
from data.sources.network import is_damage, retry_damage, with_retries
from model.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
URL = "https://host/rows.parquet"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between tries, without the waiting."""
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(slept))
    monkeypatch.setattr(network, "time", clock)
    monkeypatch.setattr(network, "pause", slept.append)
    return slept


class Failing:
    """Raises `errors` one after the other, then gives "read"."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "read"


def hub_error(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    request = httpx2.Request("GET", URL)
    return kind(f"HTTP {status}", response=httpx2.Response(status, request=request))


def http_error(status: int) -> aiohttp.ClientResponseError:
    info = SimpleNamespace(real_url=URL)
    return aiohttp.ClientResponseError(info, (), status=status, message="said the server")  # type: ignore[arg-type]


def not_found(cause: Exception) -> FileNotFoundError:
    """What fsspec's HTTP file system makes of any failure of the request for a file's size."""
    error = FileNotFoundError(URL)
    error.__cause__ = cause
    return error


PASSING = [
    ConnectionResetError(104, "Connection reset by peer"),
    TimeoutError("timed out"),
    FSTimeoutError(),
    OSError(113, "No route to host"),
    FileNotFoundError(URL),
    aiohttp.ClientPayloadError("not all bytes came"),
    aiohttp.ServerDisconnectedError(),
    http_error(503),
    http_error(404),
    httpx.ReadTimeout("slow"),
    httpx2.RemoteProtocolError("peer closed connection"),
    requests.ConnectionError("refused"),
    hub_error(500),
    hub_error(429),
    hub_error(404, RemoteEntryNotFoundError),
    RuntimeError("Cannot send a request, as the client has been closed."),
    not_found(http_error(500)),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_what_the_network_does_is_tried_again(error: Exception, waits: list[float]) -> None:
    read = Failing(error, error)
    assert with_retries(read, URL, 60) == "read"
    assert read.calls == 3 and waits == [1, 2]


@pytest.mark.parametrize(
    ("timeout_s", "waited"), [(60, [1, 2, 4, 8, 16, 29]), (5, [1, 2, 2]), (120, [1, 2, 4, 8, 16, 32, 32, 25])]
)
def test_the_end_is_one_sentence(
    waits: list[float], caplog: pytest.LogCaptureFixture, timeout_s: int, waited: list[float]
) -> None:
    read = Failing(*[ConnectionResetError(104, "reset\nby peer")] * 9)
    with pytest.raises(ConnectionError) as caught, caplog.at_level(logging.WARNING):
        with_retries(read, URL, timeout_s)
    assert str(caught.value) == (
        f"{URL} cannot be read (ConnectionResetError: [Errno 104] reset by peer; tried for {timeout_s} s): "
        "once it can be, the same command goes on from there"
    )
    assert waits == waited
    assert [record.getMessage().split()[-2] for record in caplog.records] == list(map(str, waited))


def test_a_long_reason_is_cut() -> None:
    with pytest.raises(ConnectionError) as caught:
        with_retries(Failing(*[TimeoutError("no word " * 99)] * 9), URL, 60)
    assert len(str(caught.value)) < 320 and " ...; tried for 60 s)" in str(caught.value)


def test_why_the_tries_failed_is_said_not_that_the_last_was_cut_short() -> None:
    errors = [ConnectionResetError(104, "reset"), *[TimeoutError("nothing came for 3 s")] * 9]
    with pytest.raises(
        ConnectionError, match=r"\(ConnectionResetError: \[Errno 104\] reset; tried for 60 s\)"
    ):
        with_retries(Failing(*errors), URL, 60)


def test_a_read_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    ended = threading.Event()
    begin = time.monotonic()
    with pytest.raises(ConnectionError, match=r"\(TimeoutError: nothing came for \d+ s; tried for \d+ s\)"):
        with_retries(lambda: ended.wait(60), URL, 0.2)
    assert time.monotonic() - begin < 30
    ended.set()


def test_a_signed_url_is_not_written_down() -> None:
    error = ConnectionResetError(
        "Server error for url 'https://cdn/a?Signature=xyz' and https://cdn/b?s=xyz&t"
    )
    with pytest.raises(ConnectionError, match=r"for url 'https://cdn/a' and https://cdn/b;") as caught:
        with_retries(Failing(*[error] * 9), URL, 60)
    assert "xyz" not in str(caught.value)


def test_a_retry_is_said_on_stderr_which_is_the_log() -> None:
    program = (
        "from data.sources import network\n"
        "network.RETRY_SECONDS = (0,)\n"
        "def read(tries=[]):\n"
        "    tries.append(1)\n"
        "    if len(tries) == 1: raise TimeoutError('slow')\n"
        f"network.with_retries(read, {URL!r}, 60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stderr.strip() == f"{URL}: TimeoutError: slow; trying again in 0 s"


@pytest.mark.parametrize(
    "error",
    [http_error(403), hub_error(401), not_found(http_error(410))],
    ids=lambda error: type(error).__name__,
)
def test_an_answer_that_would_stay_the_same_ends_it_at_once(error: Exception, waits: list[float]) -> None:
    with pytest.raises(ConnectionError, match=r"cannot be read \([^;]*\): once"):
        with_retries(Failing(error), URL, 60)
    assert waits == []


@pytest.mark.parametrize("path", ["rows.parquet", "/data/rows.parquet", "file:///data/rows.parquet"])
def test_a_local_path_is_read_once(path: str) -> None:
    read = Failing(OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input/output error"):
        with_retries(read, path, 60)
    assert read.calls == 1


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(1), ValueError("a mistake"), KeyError("x")]
)
def test_what_is_no_failure_of_the_network_passes_at_once(error: BaseException, waits: list[float]) -> None:
    read = Failing(error)
    with pytest.raises(type(error)):
        with_retries(read, URL, 60)
    assert read.calls == 1 and waits == []


def test_a_server_without_ranges_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"does not send parts of a file: download it$"):
        with_retries(
            Failing(ValueError("The HTTP server doesn't appear to support range requests.")), URL, 60
        )


def test_damage_of_a_remote_file_is_tried_again_and_then_stays_damage(waits: list[float]) -> None:
    for tried in with_retries, retry_damage:
        waits.clear()
        assert tried(Failing(pa.ArrowInvalid("cut short")), URL, 60) == "read"
        with pytest.raises(pa.ArrowInvalid):
            tried(Failing(*[pa.ArrowInvalid("cut short")] * 9), URL, 60)
        assert len(waits) == 1 + len(network.RETRY_SECONDS)


def broken_parquet() -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": [f"row {row} " * 9 for row in range(999)]}), file, compression="snappy")
    broken = bytearray(file.getvalue())
    broken[100:200] = b"?" * 100
    pq.read_table(io.BytesIO(broken))


def truncated_parquet() -> None:
    pq.ParquetFile(io.BytesIO(b"PAR1 half of it"))


def short_parquet() -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["a row"]}), file)
    pq.ParquetFile(io.BytesIO(file.getvalue()[:4] + file.getvalue()[-400:])).read()


def xz_without_end() -> None:
    lzma.decompress(lzma.compress(b"text" * 999)[:-20] + b"?" * 20)


@pytest.mark.parametrize(
    "read",
    [
        broken_parquet,
        truncated_parquet,
        short_parquet,
        xz_without_end,
        lambda: gzip.decompress(gzip.compress(b"text" * 999)[:-12]),
        lambda: zlib.decompress(b"no zlib"),
        lambda: bz2.BZ2Decompressor().decompress(b"no bzip2 at all"),
        lambda: zstandard.ZstdDecompressor().decompressobj().decompress(b"no zstandard"),
    ],
)
def test_bytes_that_cannot_be_decoded_are_damage(read: Callable[[], object]) -> None:
    with pytest.raises(Exception) as caught:
        read()
    assert is_damage(caught.value)


@pytest.mark.parametrize(
    "error", [*PASSING, pa.ArrowMemoryError("malloc"), MemoryError(), ValueError()], ids=repr
)
def test_nothing_else_is_damage(error: Exception) -> None:
    assert not is_damage(error)


@pytest.mark.parametrize(
    "error", [aiohttp.ClientPayloadError("cut"), ConnectionResetError(), KeyboardInterrupt()]
)
def test_pyarrow_hands_on_what_a_file_raises(error: BaseException) -> None:
    class File(io.BytesIO):
        broken = False

        def read(self, size: int | None = -1) -> bytes:
            if self.broken:
                raise error
            return super().read(size)

    file = File()
    pq.write_table(pa.table({"text": ["a row"]}), file)
    parquet = pq.ParquetFile(file, pre_buffer=False)
    file.broken = True
    with pytest.raises(type(error)) as caught:
        parquet.read_row_group(0, use_threads=False)
    assert caught.value is error
