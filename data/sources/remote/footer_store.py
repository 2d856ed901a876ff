"""Reading many files' footers: those of remote files once for all processes of a machine."""

import gc
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
from filelock import FileLock

from model.errors import UserError
from model.files import write_bytes

from ...files.versions import UNKNOWN, remote_version
from ...parallel import side_by_side
from ..network import filesystem_of, is_damage, retry_damage, with_retries
from ..places import is_remote
from .footers import MAGIC, Footer, cut, footer_from, parse
from .ranges import read_range

FOOTERS_DIR = Path(
    os.environ.get("NORMLAB_FOOTERS_DIR") or Path(__file__).resolve().parents[3] / ".cache" / "footers"
)
FORMAT = 1  # of the files there: one of another is read again from its source
TAIL_BYTES = 2**16
"""So much of a file's end is read at first: most footers fit."""
FILES_AT_ONCE = 3
"""So many are fetched side by side: a large footer has 9 MB."""
REQUESTS_AT_ONCE = 16


class _File(NamedTuple):
    """A file whose footer is wanted."""

    path: str
    storage_options: dict[str, Any]
    size: int
    columns: tuple[str, ...]
    timeout_s: float
    version: str | None
    """What tells its content, where it is remote."""
    kept: Path | None
    """Where the footer is kept on this machine."""


def read_footers(
    paths: Sequence[str], storage_options: dict[str, Any], columns: Sequence[str], timeout_s: float
) -> list[Footer | str]:
    """The footer of each file, or what is wrong with the file.

    Of remote files they are kept in `FOOTERS_DIR`, where it can be written, for every version of a file. One
    process fetches at a time; the others find what it kept.

    Args:
        paths: The files.
        storage_options: Of their file systems, by protocol.
        columns: Those to be read, the text column first.
        timeout_s: How long a remote file may fail.

    Raises:
        OSError: a file is not there or cannot be reached.
        UserError: a server does not say how large a file is.
    """
    files = _files(paths, storage_options, tuple(columns), timeout_s)
    footers: dict[str, Footer | str] = {}
    footers.update(_kept(files))
    if missing := [file for file in files if file.path not in footers]:
        if any(file.kept for file in missing):
            with alone():
                footers.update(_kept(missing))  # what another process has kept meanwhile
                footers.update(_read([file for file in missing if file.path not in footers]))
        else:
            footers.update(_read(missing))
    return [
        footer
        if isinstance(footer := footers[file.path], str)
        else footer.standing_for(file.size, file.version)
        for file in files
    ]


def _files(
    paths: Sequence[str], storage_options: dict[str, Any], columns: tuple[str, ...], timeout_s: float
) -> list[_File]:
    # made here, as each thread would get file systems of its own, which know nothing yet
    places = [(path, *filesystem_of(path, storage_options)) for path in paths]

    def file_of(place: tuple[str, fsspec.AbstractFileSystem, str]) -> _File:
        path, filesystem, location = place
        info = with_retries(lambda: filesystem.info(location), path, timeout_s, opening=True)
        size = info["size"]
        if size is None:
            raise UserError(f"data.source: the server of {path} does not say its size: download the file")
        kept, version = None, remote_version(path, info)
        if version is not None and not version.startswith(UNKNOWN):
            key = hashlib.sha256(json.dumps([FORMAT, path, version, columns]).encode()).hexdigest()
            kept = FOOTERS_DIR / key[:2] / f"{key[:32]}.npz"
        return _File(path, storage_options, size, columns, timeout_s, version, kept)

    first = list(map(file_of, places[:1]))  # the hub's file system then knows its folder
    return first + side_by_side(file_of, places[1:], REQUESTS_AT_ONCE)


def _kept(files: Sequence[_File]) -> Iterator[tuple[str, Footer]]:
    for file in files:
        if file.kept is not None:
            with suppress(OSError, ValueError):  # not there, or damaged: it is read again
                yield file.path, footer_from(file.kept.read_bytes())


@contextmanager
def alone() -> Iterator[None]:
    """While no other process of this machine fetches the same, where the folder of footers allows that."""
    lock = FileLock(FOOTERS_DIR / "lock")
    with suppress(OSError):
        FOOTERS_DIR.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read(files: Sequence[_File]) -> Iterator[tuple[str, Footer | str]]:
    """Fetched side by side, but parsed one after the other, which takes several times a footer's size."""
    tail = TAIL_BYTES
    for start in range(0, len(files), FILES_AT_ONCE):
        batch = files[start : start + FILES_AT_ONCE]
        ends = side_by_side(partial(_end_of, tail=tail), batch, FILES_AT_ONCE)
        tail = max(TAIL_BYTES, *(end.size * 17 // 16 for end in ends))  # the next are mostly alike
        for file, end in zip(batch, ends, strict=True):
            footer = _footer(file, end)
            if isinstance(footer, Footer) and file.kept is not None:
                with suppress(OSError):  # it is done without
                    write_bytes(file.kept, footer.to_bytes())
            yield file.path, footer
            gc.collect(1)  # pyarrow's metadata and schema refer to each other, tens of MB for each file
    pa.default_memory_pool().release_unused()


def _footer(file: _File, end: pa.Buffer) -> Footer | str:
    """The footer that is the end of a file, fetched again where it is damaged; or what is wrong with it."""
    ends = chain([end], (_end_of(file) for _ in count()))

    def read() -> Footer:
        return cut(parse(next(ends)), file.size, file.columns)

    try:
        return retry_damage(read, file.path, file.timeout_s)
    except Exception as error:
        if is_damage(error):
            return f"{file.path} is not a readable parquet file ({' '.join(str(error).split())})"
        raise


def _end_of(file: _File, tail: int = TAIL_BYTES) -> pa.Buffer:
    """The end of a file from its footer on, or so much of it as tells that it has none."""
    end = _part(file, max(0, file.size - tail))
    last = end[max(0, end.size - 8) :].to_pybytes()
    footer = int.from_bytes(last[:4], "little") + 8
    if last[4:] == MAGIC and end.size < footer <= file.size:
        return _part(file, file.size - footer)
    return end if end.size <= TAIL_BYTES else end[max(0, end.size - max(footer, TAIL_BYTES)) :]


def _part(file: _File, start: int) -> pa.Buffer:
    if is_remote(file.path):
        return read_range(file.path, file.storage_options, start, file.size, file.timeout_s)
    filesystem, location = filesystem_of(file.path, file.storage_options)
    with filesystem.open(location, "rb", cache_type="none") as opened:
        opened.seek(start)
        return pa.py_buffer(opened.read())
