"""Paths, URLs and file names: which is which, what a name says, and a hint for a path that does not exist."""

import glob
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from model.errors import did_you_mean

COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
FILE_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".jsonlines": "json",
}
"""The reader, by the end of a file's name in small letters."""
_BESIDE = (".crc", ".md5", ".sha1", ".sha256", ".lock", ".metadata")
"""Ends of small files that stand beside data and hold none."""
_SUFFIX = re.compile(r"\.(parquet|pq|jsonl|json|ndjson|jsonlines|bin)(?![a-z0-9])", re.IGNORECASE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_remote(path: str) -> bool:
    """Whether a path is a URL of anything but the local file system."""
    return "://" in path and not path.lower().startswith("file://")


def local_path(source: str) -> Path:
    """The path that a source here is, or that its `file://` URL names."""
    if source.lower().startswith("file://"):
        return Path(unquote(urlsplit(source.replace("?", "%3F").replace("#", "%23")).path))
    return Path(source).expanduser()


def is_hub_id(source: str) -> bool:
    """Whether a source that is no file or folder here can be a data set of the Hugging Face hub."""
    suffix = Path(source).expanduser().suffix.lower()
    return bool(_HUB_ID.fullmatch(source)) and suffix not in (*FILE_FORMATS, *COMPRESSED, ".bin")


def file_format(name: str) -> str | None:
    """Which of FILE_FORMATS a file or URL is of, JSON lines perhaps compressed; None for any other."""
    name = name.partition("?")[0].lower() if is_remote(name) else name.lower()
    plain = without_compression(name)
    found = next((reader for suffix, reader in FILE_FORMATS.items() if plain.endswith(suffix)), None)
    return None if found == "parquet" and plain != name else found


def without_compression(name: str) -> str:
    """A file's name without the `.gz` or the like at its end."""
    for suffix in COMPRESSED:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def is_hidden(part: str) -> bool:
    """Whether programs leave a file or folder out by its name, `.cache` and `_temporary`; `_year=2024` is a
    value, as Spark writes it."""
    return part.startswith(".") or (part.startswith("_") and "=" not in part)


def local_format(name: str) -> str | None:
    """`file_format` of a file here, `bin` for one of tokens."""
    return "bin" if name.lower().endswith(".bin") else file_format(name)


def goes_on_after_suffix(name: str) -> bool:
    """Whether a name goes on after the suffix of a format: a file that is being written, or a copy of one."""
    return bool(_SUFFIX.search(name)) and local_format(name) is None and not name.lower().endswith(_BESIDE)


def is_left_out(path: str, pattern: str = "") -> bool:
    """Whether a file of a folder, or one that a pattern matches, is hidden or not finished.

    Args:
        path: Relative to the folder, or to what the pattern is relative to.
        pattern: Hidden files and folders that it names itself are asked for.
    """
    hidden, asked_for = (sum(map(is_hidden, PurePosixPath(one).parts)) for one in (path, pattern))
    return hidden > asked_for or goes_on_after_suffix(PurePosixPath(path).name)


def is_data(path: str) -> bool:
    """Whether a name has the suffix of a format, at its end or before something else."""
    name = PurePosixPath(path).name
    return local_format(name) is not None or goes_on_after_suffix(name)


def nearest_path(path: Path) -> str:
    """A hint for a path that is not there: a neighbour with a similar name, or the folder that is missing."""
    if not path.parent.is_dir():
        return "" if glob.has_magic(str(path.parent)) else f" (there is no folder {path.parent})"
    if path.exists() or glob.has_magic(path.name):
        return ""
    return did_you_mean(path.name, ["sample", *(neighbour.name for neighbour in path.parent.iterdir())])
