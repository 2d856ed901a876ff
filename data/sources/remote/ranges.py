"""Parts of a remote file: what has come is kept, whatever the network does to the rest."""

import asyncio
import io
import re
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple
from urllib.parse import unquote

import fsspec
import pyarrow as pa

from ..network import TRIES_PER_TIMEOUT, Tries, filesystem_of, in_thread, result_of, without_parts

PIECE_BYTES = (2**16, 2**20)
"""So much is asked of storage whose answers cannot be watched as they come, less after each failure."""
Add = Callable[[bytes], None]
HUB_FILE = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)/(?P<name>.+)")


class _Part:
    """Bytes of a file as they come, in memory that goes back to the system when it is done with."""

    def __init__(self, size: int) -> None:
        self._buffer = pa.allocate_buffer(size)
        self._view = memoryview(self._buffer).cast("B")
        self.filled = 0

    def content(self) -> pa.Buffer:
        """What has come."""
        return self._buffer.slice(0, self.filled)

    def is_full(self) -> bool:
        return self.filled == len(self._view)

    def add(self, piece: bytes) -> None:
        end = min(self.filled + len(piece), len(self._view))
        self._view[self.filled : end] = piece[: end - self.filled]
        self.filled = end


class _Try:
    """One try to fill a part. What comes after it was given up is not taken."""

    def __init__(self, part: _Part) -> None:
        self._part: _Part | None = part
        self._before = part.filled

    def add(self, piece: bytes) -> None:
        """Raises ConnectionError where the try was given up."""
        if self._part is None:
            raise ConnectionError("it was given up")
        self._part.add(piece)

    def came(self) -> int:
        """The bytes that it has brought."""
        return 0 if self._part is None else self._part.filled - self._before

    def give_up(self) -> int:
        """The bytes that it has brought, and no more."""
        came = self.came()
        self._part = None
        return came


def read_range(
    path: str, storage_options: dict[str, Any], start: int, stop: int, timeout_s: float
) -> pa.Buffer:
    """The bytes `start` to `stop` of a remote file; fewer where it ends before.

    A try that the network ends is followed by another, which asks for what has not come yet. They end once
    `timeout_s` have passed with less than `SLOWEST_BYTES_PER_SECOND`, whether the source fails, hangs or
    trickles.

    Raises:
        ConnectionError: the file cannot be read.
        UserError: the server does not send parts of a file.
    """
    filesystem, location = filesystem_of(path, storage_options)
    part = _Part(stop - start)
    tries = Tries(path, timeout_s)
    while True:
        one = _Try(part)
        seconds = min(timeout_s / TRIES_PER_TIMEOUT, tries.seconds_left())
        asked = _Range(path, filesystem, location, start + part.filled, stop)
        try:
            result_of(_fetch(asked, one.add, seconds, tries.failed), seconds, one.came)
            return part.content()
        except Exception as error:
            came = one.give_up()
            if part.is_full():  # only the end of the connection was not as it should be
                return part.content()
            tries.wait_after(error, came)


class _Range(NamedTuple):
    """A part of a file that is asked for."""

    path: str
    filesystem: fsspec.AbstractFileSystem
    location: str
    start: int
    stop: int

    @property
    def header(self) -> dict[str, str]:
        return {"Range": f"bytes={self.start}-{self.stop - 1}"}

    def check_answer(self, status: int, headers: Any) -> None:
        """Raises UserError for an answer that is a whole file which was not asked for."""
        is_all = self.start == 0 and int(headers.get("Content-Length", self.stop + 1)) <= self.stop
        if status != 206 and not is_all:
            raise without_parts(self.path)


class RemoteFile(io.RawIOBase):
    """A remote file of `size` bytes, read where it is asked for and nowhere else. Raises as `read_range`."""

    def __init__(self, path: str, storage_options: dict[str, Any], size: int, timeout_s: float) -> None:
        self._path, self._storage_options = path, storage_options
        self._size, self._timeout_s = size, timeout_s
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int | None = -1) -> Any:
        """As `pa.Buffer`, which pyarrow takes as it is."""
        stop = self._size if size is None or size < 0 else min(self._place + size, self._size)
        if stop <= self._place:
            return b""
        content = read_range(self._path, self._storage_options, self._place, stop, self._timeout_s)
        self._place += content.size
        return content


def _fetch(asked: _Range, add: Add, seconds: float, failed: int) -> "Future[None]":
    """Gives the bytes to `add`, as they come. A connection that sends nothing ends by itself, but only after
    the `seconds` for which it is waited."""
    seconds *= 2
    if asked.path.startswith(("http://", "https://")):
        return asyncio.run_coroutine_threadsafe(_http_stream(asked, add, seconds), asked.filesystem.loop)
    if HUB_FILE.fullmatch(asked.path):
        return in_thread(lambda: _hub_stream(asked, add, seconds))
    smallest, largest = PIECE_BYTES
    return in_thread(lambda: _in_pieces(asked, add, max(smallest, largest >> 2 * failed)))


async def _http_stream(asked: _Range, add: Add, seconds: float) -> None:
    import aiohttp

    filesystem = asked.filesystem
    session = await filesystem.set_session()
    options = dict(filesystem.kwargs)
    options["headers"] = options.get("headers", {}) | asked.header
    options["timeout"] = aiohttp.ClientTimeout(sock_connect=seconds, sock_read=seconds)
    async with session.get(filesystem.encode_url(asked.location), **options) as response:
        response.raise_for_status()
        asked.check_answer(response.status, response.headers)
        async for piece in response.content.iter_any():
            add(piece)


def _hub_stream(asked: _Range, add: Add, seconds: float) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    parts = HUB_FILE.fullmatch(asked.path)
    assert parts is not None
    url = hf_hub_url(parts["repo"], parts["name"], repo_type="dataset", revision=unquote(parts["revision"]))
    headers = build_hf_headers(token=asked.filesystem.token) | asked.header | {"Accept-Encoding": "identity"}
    # its own tries would come on top of ours
    with http_stream_backoff("GET", url, max_retries=0, headers=headers, timeout=seconds) as response:
        hf_raise_for_status(response)
        asked.check_answer(response.status_code, response.headers)
        for piece in response.iter_bytes():
            add(piece)


def _in_pieces(asked: _Range, add: Add, size: int) -> None:
    for start in range(asked.start, asked.stop, size):
        stop = min(start + size, asked.stop)
        piece = asked.filesystem.cat_file(asked.location, start=start, end=stop)
        add(piece)
        if len(piece) < stop - start:  # the file ends here
            return
