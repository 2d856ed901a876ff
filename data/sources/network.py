"""Reading over a network that may drop: several tries with back-off, then one clear end."""

import logging
import lzma
import re
import time
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import zstandard

from model.errors import UserError

from .places import is_remote

RETRY_SECONDS = (1, 2, 4, 8, 16, 32)
"""How long to wait before each further try."""
# by name, because which of them fsspec and the hub's client use changes with their versions
NETWORK_LIBRARIES = frozenset(
    ["aiohttp", "botocore", "fsspec", "gcsfs", "httpcore", "httpx", "httpx2", "huggingface_hub"]
    + ["requests", "urllib3"]
)
PASSING_STATUSES = frozenset({404, 408, 429})
"""What a server that is busy, or a hub between two states, answers for a file that is there."""
STALLED_SECONDS: float = 30
"""So long a server may send nothing before it is asked again."""

T = TypeVar("T")
_log = logging.getLogger(__name__)  # without a handler a warning goes to stderr, which is the run's log


def with_retries(read: Callable[[], T], path: str, opening: bool = False) -> T:
    """What `read` gives. Where `path` is remote, a network failure is tried again, and so is damage, as a
    download that was cut short looks like it. With `opening` a file that is not there is no failure that
    passes.

    Raises:
        ConnectionError: a remote path cannot be read.
        Exception: what `read` raises otherwise; damage of a remote path once it is there in every try.
    """
    if not is_remote(path):
        return read()
    for tries, wait in enumerate((*RETRY_SECONDS, None), start=1):
        try:
            return read()
        except Exception as error:
            damage = is_damage(error)
            if type(error) is ValueError and "HTTP" in str(error):  # fsspec's
                raise UserError(
                    f"data.source: the server of {path} does not send parts of a file: download it"
                ) from error
            if not damage and not _is_network_failure(error):
                raise
            reason = _cause(error)
            if wait is None or _is_final(reason, opening):
                if damage:
                    raise
                raise ConnectionError(
                    f"{path} cannot be read ({_error_text(reason)}; tried {tries} time{'s' * (tries > 1)}): "
                    "once it can be, the same command goes on from there"
                ) from error
            _log.warning("%s: %s; trying again in %s s", path, _error_text(reason), wait)
        time.sleep(wait)
    raise AssertionError


def filesystem_of(path: str, storage_options: dict[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system that holds a path, and what the path is called there. Options are by protocol."""
    options = dict(storage_options)
    for protocol in ("http", "https"):
        if f"{protocol}://" in path and protocol not in options:
            options[protocol] = _http_options()
    return fsspec.core.url_to_fs(path, **{key: options[key] for key in options if f"{key}://" in path})


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
    text = re.sub(r"(https?://[^\s?']+)\?[^\s']*", r"\1", str(error))  # a query may be a signature
    return f"{type(error).__name__}: {' '.join(text.split())}".removesuffix(": ")
