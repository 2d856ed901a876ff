"""Paths and URLs: which is which, and a hint for a path that does not exist."""

import glob
import re
from pathlib import Path

from model.errors import did_you_mean

COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
FILE_FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".ndjson": "json"}
"""The reader of `datasets`, by the end of a file's name."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_remote(path: str) -> bool:
    """Whether a path is a URL of anything but the local file system."""
    return "://" in path and not path.startswith("file://")


def is_hub_id(source: str) -> bool:
    """Whether a source that is no file or folder here can be a data set of the Hugging Face hub."""
    suffix = Path(source).expanduser().suffix
    return bool(_HUB_ID.fullmatch(source)) and suffix not in (*FILE_FORMATS, *COMPRESSED, ".bin")


def file_format(name: str) -> str | None:
    """Which of FILE_FORMATS a file or URL, perhaps compressed, is of; None for any other."""
    name = name.partition("?")[0]
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return next((reader for suffix, reader in FILE_FORMATS.items() if name.endswith(suffix)), None)


def nearest_path(path: Path) -> str:
    """A hint for a path that is not there: a neighbour with a similar name, or the folder that is missing."""
    if not path.parent.is_dir():
        return "" if glob.has_magic(str(path.parent)) else f" (there is no folder {path.parent})"
    if path.exists() or glob.has_magic(path.name):
        return ""
    return did_you_mean(path.name, ["sample", *(neighbour.name for neighbour in path.parent.iterdir())])
