"""Parts of a remote file: what has come is kept, whatever the network does to the rest."""

import asyncio
import io
import re
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from urllib.parse import unquote

import fsspec

from ..network import TRIES_PER_TIMEOUT, Tries, filesystem_of, in_thread, result_of, without_parts

PIECE_BYTES = (2**16, 2**20)
"""So much is asked of storage whose answers cannot be watched as they come, less after each failure."""
_HUB_FILE = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)/(?P<name>.+)")


def read_range(path: str, storage_options: dict[str, Any], start: int, stop: int, timeout_s: float) -> bytes:
    """The bytes `start` to `stop` of a remote file; fewer where it ends before.

    A try that the network ends is followed by another, which asks for what has not come yet. They end once
    `timeout_s` have passed with less than `SLOWEST_BYTES_PER_SECOND`, whether the source fails, hangs or
    trickles.

    Raises:
        ConnectionError: the file cannot be read.
        UserError: the server does not send parts of a file.
    """
    filesystem, location = filesystem_of(path, storage_options)
    got = bytearray()
    tries = Tries(path, timeout_s)
    while True:
        before = len(got)
        seconds = min(timeout_s / TRIES_PER_TIMEOUT, tries.seconds_left())
        part = bytearray()  # of this try alone: one that is given up may still write to its own
        try:
            future = _fetch(path, filesystem, location, start + before, stop, part, seconds, tries.failed)
            result_of(future, seconds, lambda part=part: len(part))  # type: ignore[misc]
            return bytes((got + part)[: stop - start])
        except Exception as error:
            came = bytes(part)
            got += came
            if len(got) >= stop - start:  # and only the end of the connection was not as it should be
                return bytes(got[: stop - start])
            tries.wait_after(error, len(came))


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

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._place + size, self._size)
        if stop <= self._place:
            return b""
        content = read_range(self._path, self._storage_options, self._place, stop, self._timeout_s)
        self._place += len(content)
        return content


def _fetch(
    path: str,
    filesystem: fsspec.AbstractFileSystem,
    location: str,
    start: int,
    stop: int,
    part: bytearray,
    seconds: float,
    failed: int,
) -> "Future[None]":
    """Fills `part`, as the bytes come. A connection that sends nothing for `seconds` is given up."""
    if path.startswith(("http://", "https://")):
        stream = _http_stream(path, filesystem, location, start, stop, part, seconds)
        return asyncio.run_coroutine_threadsafe(stream, filesystem.loop)
    read: Callable[[], None]
    hub_file = _HUB_FILE.fullmatch(path)
    if hub_file is not None:
        parts = hub_file.groupdict()

        def read() -> None:
            _hub_stream(path, parts, filesystem.token, start, stop, part, seconds)

    else:
        smallest, largest = PIECE_BYTES
        size = max(smallest, largest >> 2 * failed)

        def read() -> None:
            for begin in range(start, stop, size):
                end = min(begin + size, stop)
                piece = filesystem.cat_file(location, start=begin, end=end)
                part.extend(piece)
                if len(piece) < end - begin:  # the file ends here
                    return

    return in_thread(read)


async def _http_stream(
    path: str,
    filesystem: fsspec.AbstractFileSystem,
    location: str,
    start: int,
    stop: int,
    part: bytearray,
    seconds: float,
) -> None:
    import aiohttp

    session = await filesystem.set_session()
    options = dict(filesystem.kwargs)
    options["headers"] = options.get("headers", {}) | {"Range": f"bytes={start}-{stop - 1}"}
    options["timeout"] = aiohttp.ClientTimeout(sock_connect=seconds, sock_read=seconds)
    async with session.get(filesystem.encode_url(location), **options) as response:
        response.raise_for_status()
        _check_is_part(path, response.status, response.headers, start, stop)
        async for chunk in response.content.iter_any():
            part.extend(chunk)


def _hub_stream(
    path: str,
    parts: dict[str, str],
    token: str | None,
    start: int,
    stop: int,
    part: bytearray,
    seconds: float,
) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    repo, revision = parts["repo"], unquote(parts["revision"])
    url = hf_hub_url(repo, parts["name"], repo_type="dataset", revision=revision)
    headers = build_hf_headers(token=token) | {"Range": f"bytes={start}-{stop - 1}"}
    headers["Accept-Encoding"] = "identity"
    # its own tries would come on top of ours
    with http_stream_backoff("GET", url, max_retries=0, headers=headers, timeout=seconds) as response:
        hf_raise_for_status(response)
        _check_is_part(path, response.status_code, response.headers, start, stop)
        for chunk in response.iter_bytes():
            part.extend(chunk)


def _check_is_part(path: str, status: int, headers: Any, start: int, stop: int) -> None:
    """Raises UserError for an answer that is a whole file which was not asked for."""
    is_all = start == 0 and int(headers.get("Content-Length", stop + 1)) <= stop
    if status != 206 and not is_all:
        raise without_parts(path)
