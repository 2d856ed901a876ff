"""A disk that takes no more: which error says so, one sentence for it, and space kept for the last words."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from model.errors import UserError

FULL = {
    errno.ENOSPC: "no space is left there",
    errno.EDQUOT: "the quota there is used up",
    errno.EFBIG: "files there may not be larger",
}
REFUSING = {
    errno.EROFS: "it is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EIO: "the disk has an error",
    errno.ESTALE: "the file system is gone",
}
"""These are of the disk where they are about a file of the run; the network and the data raise them too."""
RESERVE_BYTES = 256 * 1024
"""A page of the disk for what each of 64 ranks says last."""


def disk_sentence(error: BaseException, run_dir: Path) -> str | None:
    """What could not be written, how much is free there and what to do; None for any other error."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno is not None:
            file = Path(os.fsdecode(chain.filename)) if chain.filename else None
            ours = file is not None and Path(os.path.abspath(file)).is_relative_to(os.path.abspath(run_dir))
            if why := FULL.get(chain.errno) or (REFUSING.get(chain.errno) if ours else None):
                remedy = "make space" if chain.errno in FULL else "make it writable"
                return (
                    f"{file or 'a file'} cannot be written: {why}{_free(file or run_dir)}; {remedy}, and the "
                    "same command goes on from the last checkpoint"
                )
        chain = chain.__cause__ or chain.__context__
    return None


def check_writable(run_dir: Path) -> None:
    """Refuse a run folder, or the folder that it would be made in, where nothing can be written.

    Nothing is made. Raises UserError.
    """
    there = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    for path in (there, run_dir / "logs", run_dir / "checkpoints", run_dir / "eval"):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is no folder, and nothing can be below it: choose another --run_dir")
        if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
            raise UserError(
                f"nothing can be written to {path}: make it writable, or choose another --run_dir"
            )


def reserve_of(run_dir: Path) -> Path:
    """A file that only takes space, which is given back when the disk is full."""
    return run_dir / "logs" / "reserve"


def keep_reserve(run_dir: Path) -> None:
    """Take the space of the reserve. Raises OSError where there is not even that."""
    reserve_of(run_dir).write_bytes(os.urandom(RESERVE_BYTES))  # zeros take none on some file systems


def on_full_disk(run_dir: Path, write: Callable[[], object]) -> None:
    """Write the last words: where the disk is full, in the space of the reserve."""
    try:
        write()
    except OSError as error:
        if error.errno not in FULL:
            raise
        reserve_of(run_dir).unlink(missing_ok=True)
        write()


def _free(path: Path) -> str:
    with suppress(OSError):
        where = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        found = os.statvfs(where)
        free = found.f_bavail * found.f_frsize
        size = f"{free / 2**30:.1f} GiB" if free >= 2**30 else f"{free / 2**20:.1f} MiB"
        return f" ({size} free)"
    return ""
