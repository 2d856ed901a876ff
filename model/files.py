"""Files that are there whole or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .redaction import redact


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, which takes its place once it is on the disk.

    A crash at any moment leaves the old file or the new one. Each process writes a partial file of its own,
    which an error removes. An OSError names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # not the process id alone: hosts that share a file system have the same ones
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.partial")
    try:
        write(partial)
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(partial)):
            error.filename = str(path)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """`write_whole` of bytes."""
    write_whole(path, lambda partial: partial.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """`write_whole` of UTF-8 text, without signatures, tokens and keys: see `redact`."""
    write_bytes(path, redact(text).encode())


def append_text(path: Path, text: str) -> None:
    """Add UTF-8 text to the end of a file, without signatures, tokens and keys. An OSError names it."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(redact(text))
    except OSError as error:
        error.filename = str(path)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_whole` of JSON, indented."""
    write_text(path, json.dumps(value, indent=2) + "\n")
