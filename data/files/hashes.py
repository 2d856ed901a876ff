"""The sha256 of files here, which is remembered as long as nothing about a file changes."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from model.errors import UserError
from model.files import write_json

HASH_DIR = Path(
    os.environ.get("NORMLAB_HASH_DIR") or Path(__file__).resolve().parents[2] / ".cache" / "hashes"
)

PIECE_BYTES = 2**22
SETTLED_SECONDS = 1.0
"""A file that changed later than this before it was read might change again and keep its times."""


def content_hashes(paths: Sequence[str]) -> dict[str, str]:
    """`sha256:` and the hash of what each file holds; of small files in the hub's cache `blob_id:` and git's.

    One process on a machine reads the files, several at a time; others that ask meanwhile wait and find what
    it remembered in `HASH_DIR`.

    Raises:
        UserError: a file cannot be read.
    """
    found = _remembered(paths)
    missing = [path for path in paths if path not in found]
    if not missing:
        return found
    try:
        HASH_DIR.mkdir(parents=True, exist_ok=True)
        lock = FileLock(HASH_DIR / "lock")
        lock.acquire()
    except OSError:  # where nothing can be remembered each process reads them
        return found | _read(missing)
    try:
        found |= _remembered(missing)
        return found | _read([path for path in missing if path not in found])
    finally:
        lock.release()


def _read(paths: Sequence[str]) -> dict[str, str]:
    from ..sources.content import late_bar  # which loads what remote files need

    def read(path: str) -> str:
        before, begun = _state(path), time.time()
        name, digest = "sha256", hashlib.sha256()
        if _is_in_git_on_hub(path):
            name, digest = "blob_id", hashlib.sha1(f"blob {before['size']}\0".encode())
        with open(path, "rb") as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
                bar.update(len(piece))
        value = f"{name}:{digest.hexdigest()}"
        times = (before["mtime_ns"], before["ctime_ns"])
        if before == _state(path) and max(times) < (begun - SETTLED_SECONDS) * 1e9:
            with suppress(OSError):  # it is read again next time
                write_json(_note(path), {"state": before, "hash": value})
        return value

    try:
        total = sum(os.path.getsize(path) for path in paths)
        with (
            late_bar(desc="checksums", total=total, unit="B", unit_scale=True) as bar,
            ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool,
        ):
            return dict(zip(paths, pool.map(read, paths), strict=True))
    except OSError as error:
        raise UserError(f"data.source: {error.filename} cannot be read ({error.strerror})") from error


def _remembered(paths: Iterable[str]) -> dict[str, str]:
    found = {}
    for path in paths:
        with suppress(OSError, ValueError):
            note: Mapping[str, Any] = json.loads(_note(path).read_text())
            if note.get("state") == _state(path):
                found[path] = note["hash"]
    return found


def _is_in_git_on_hub(path: str) -> bool:
    """Whether a file is a copy in the hub's cache of one that the hub knows by git's hash alone."""
    file = Path(os.path.realpath(path))
    return file.parent.name == "blobs" and re.fullmatch("[0-9a-f]{40}", file.name) is not None


def _note(path: str) -> Path:
    name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:32]
    return HASH_DIR / f"{name}.json"


def _state(path: str) -> dict[str, int]:
    """What changes with every write to a file, and in part with every touch."""
    stat = os.stat(path)
    return {
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }
