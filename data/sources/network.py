"""Reading over a network that may drop, hang or trickle: tries with back-off, then one clear end."""

import logging
import lzma
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from itertools import chain, repeat
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import zstandard

from model.errors import UserError
from model.redaction import redact

from ..interrupts import is_done, pause
from .places import is_remote

RETRY_SECONDS: tuple[float, ...] = (1, 2, 4, 8, 16, 32)
"""How long to wait before each further try; the last of them again and again."""
SLOWEST_BYTES_PER_SECOND = 1_000
"""A line that gives less is as good as none."""
TRIES_PER_TIMEOUT = 4
"""A read that stands still is given up after this part of `data.timeout_s`, so that another may do better."""
STALLED_SECONDS: float = 15
"""So long a server that is asked about a file may send nothing before it is asked again."""
LONGEST_REASON = 160
# by name, because which of them fsspec and the hub's client use changes with their versions
NETWORK_LIBRARIES = frozenset(
    ["aiohttp", "botocore", "fsspec", "gcsfs", "httpcore", "httpx", "httpx2", "huggingface_hub"]
    + ["requests", "urllib3"]
)
PASSING_STATUSES = frozenset({404, 408, 429})
"""What a server that is busy, or a hub between two states, answers for a file that is there."""

KNOWN_FILES: dict[str, dict[str, list[dict[str, Any]]]] = {}
"""What the hub's file system with this option `known_files` need not ask for: the files of each folder."""

_OPENED: set[fsspec.AbstractFileSystem] = set()
"""All that were ever opened, as fsspec keeps them too, but not in a forked process: where one is collected,
it waits a second for its parent's thread and has the kernel tell the parent nothing more of its sockets."""

T = TypeVar("T")
_log = logging.getLogger(__name__)  # without a handler a warning goes to stderr, which is the run's log


class Unreadable(ConnectionError):
    """A remote path could not be read until `data.timeout_s` had passed."""


class Refused(Unreadable):
    """A server has answered, and would answer the same again."""


def with_retries(read: Callable[[], T], path: str, timeout_s: float, opening: bool = False) -> T:
    """What `read` gives. Where `path` is remote, a network failure is tried again, and so is damage, as a
    download that was cut short looks like it, until `timeout_s` have passed. A try that is not done by then
    is given up: it goes on in a thread of its own, and nobody waits for it. With `opening` a file that is not
    there is no failure that passes.

    Raises:
        ConnectionError: a remote path cannot be read.
        Exception: what `read` raises otherwise; damage of a remote path once it is there in every try.
    """
    if not is_remote(path):
        return read()
    tries = Tries(path, timeout_s, opening)
    while True:
        try:
            return result_of(in_thread(read), tries.seconds_left())
        except Exception as error:
            tries.wait_after(error)


def retry_damage(read: Callable[[], T], path: str, timeout_s: float) -> T:
    """What `read` gives, which reads a remote `path` by `read_range` and so ends by itself: only damage is
    tried again. Raises what `read` raises."""
    if not is_remote(path):
        return read()
    tries = Tries(path, timeout_s)
    while True:
        try:
            return read()
        except Exception as error:
            tries.wait_after(error)


class Tries:
    """The tries to read a remote path, until `timeout_s` have passed without anything that was of use."""

    def __init__(self, path: str, timeout_s: float, opening: bool = False) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._opening = opening
        self._why = ""
        self._began_again()

    def _began_again(self) -> None:
        self.failed = 0
        self._bytes = 0
        self._since = time.monotonic()
        self._waits = chain(RETRY_SECONDS, repeat(RETRY_SECONDS[-1]))

    def seconds_left(self) -> float:
        """Until the last try must end; a little is always left for one."""
        passed = time.monotonic() - self._since
        return max(self._timeout_s - passed, self._timeout_s / 20)

    def wait_after(self, error: Exception, bytes_read: int = 0) -> None:
        """Wait for the next try. `bytes_read` that this try has added count as progress.

        Raises:
            Interrupted: the wait was.
            ConnectionError, Exception: there is no next try, as `with_retries` says.
        """
        if isinstance(error, Unreadable):
            raise error
        damage = is_damage(error)
        if type(error) is ValueError and "HTTP" in str(error):  # fsspec's
            raise without_parts(self._path) from error
        if not damage and not _is_network_failure(error):
            raise error
        self._bytes += bytes_read
        passed = time.monotonic() - self._since
        if self._bytes > SLOWEST_BYTES_PER_SECOND * passed:
            self._began_again()
            passed = 0
        self.failed += 1
        reason = _cause(error)
        final = _is_final(reason, self._opening)
        # that the last try was cut short says less than why those before it failed
        if not self._why or type(reason) is not TimeoutError:
            self._why = _error_text(reason)
        if final or passed >= self._timeout_s:
            if damage:
                raise error
            how_long = "" if final else f"; tried for {passed:.0f} s"
            raise (Refused if final else Unreadable)(
                f"{redact(self._path)} cannot be read ({self._why}{how_long}): "
                "once it can be, the same command goes on from there"
            ) from error
        seconds = min(next(self._waits), self._timeout_s - passed)
        _log.warning("%s: %s; trying again in %.0f s", redact(self._path), _error_text(reason), seconds)
        pause(seconds)


def in_thread(function: Callable[[], T]) -> "Future[T]":
    """The result of `function` to come, from a thread that does not keep the process from ending."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # a thread cannot be cancelled

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def result_of(future: "Future[T]", seconds: float, progress: Callable[[], int] | None = None) -> T:
    """The result of a read, waited for `seconds`, or as long as `progress` counts on at a useful rate.

    Raises:
        TimeoutError: it does not come.
        Interrupted: waiting for it was.
        Exception: what the read raises.
    """
    before = 0
    try:
        while not is_done(future, seconds):
            now = progress() if progress else 0
            if now - before <= SLOWEST_BYTES_PER_SECOND * seconds:
                came = f"only {now - before:,} bytes" if now > before else "nothing"
                raise TimeoutError(f"{came} came for {seconds:.0f} s")
            before = now
    except BaseException:
        future.cancel()  # asyncio complains of a read that is under way when the process ends
        raise
    return future.result()


def filesystem_of(path: str, storage_options: dict[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system that holds a path, and what the path is called there. Options are by protocol."""
    options = dict(storage_options)
    for protocol in ("http", "https"):
        if f"{protocol}://" in path and protocol not in options:
            options[protocol] = _http_options()
    of_path = {key: options[key] for key in options if f"{key}://" in path}
    filesystem, location = fsspec.core.url_to_fs(path, **of_path)
    known = KNOWN_FILES.get(of_path.get("hf", {}).get("known_files"))
    if known and not filesystem.dircache:  # a new one: each thread and each forked process has its own
        filesystem.dircache.update(known)
    _OPENED.add(filesystem)
    return filesystem, location


def without_parts(path: str) -> UserError:
    """What to say of a server that sends only whole files."""
    return UserError(f"data.source: the server of {path} does not send parts of a file: download it")


def _http_options() -> dict[str, Any]:
    import aiohttp  # which is slow to load, and files that are here do not need

    timeout = aiohttp.ClientTimeout(sock_connect=STALLED_SECONDS, sock_read=STALLED_SECONDS)
    return {
        "client_kwargs": {"trust_env": True, "timeout": timeout},  # the proxy that the environment names
        "headers": {"Accept-Encoding": "identity"},  # parts of a file are asked for by their place in it
    }


def is_damage(error: Exception) -> bool:
    """Whether the bytes were read but cannot be decoded."""
    if type(error) is OSError:  # pyarrow's and bz2's own; the system's have a number
        return error.errno is None
    if isinstance(error, (MemoryError, pa.ArrowCancelled)):
        return False
    return isinstance(error, (pa.ArrowException, zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError))


def _cause(error: Exception) -> Exception:
    """fsspec says FileNotFoundError whatever goes wrong, and keeps what did as the cause."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def _is_network_failure(error: Exception) -> bool:
    libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    # the hub's client closes its connections for all threads when one of them fails
    closed = isinstance(error, RuntimeError) and "client has been closed" in str(error)
    return isinstance(error, OSError) or closed or not libraries.isdisjoint(NETWORK_LIBRARIES)


def is_not_there(error: BaseException | None) -> bool:
    """Whether a server has answered that there is no such file: the error, or what caused it."""
    return error is not None and (_status(error) == 404 or is_not_there(error.__cause__))


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error."""
    response = getattr(error, "response", None)
    return getattr(error, "status", None) or getattr(response, "status_code", None)


def _is_final(error: Exception, opening: bool) -> bool:
    """Whether the server answered, and would answer the same again."""
    status = _status(error)
    if status == 404 and opening:
        return True
    return isinstance(status, int) and 400 <= status < 500 and status not in PASSING_STATUSES


def _error_text(error: Exception) -> str:
    """An error in a few words."""
    text = " ".join(redact(str(error)).split())
    if len(text) > LONGEST_REASON:
        text = text[:LONGEST_REASON].rsplit(" ", 1)[0] + " ..."
    return f"{type(error).__name__}: {text}".removesuffix(": ")
