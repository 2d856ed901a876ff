"""Paths and URLs: which is which, and a hint for a path that does not exist."""

import glob
from pathlib import Path

from model.errors import did_you_mean


def is_remote(path: str) -> bool:
    """Whether a path is a URL of anything but the local file system."""
    return "://" in path and not path.startswith("file://")


def nearest_path(path: Path) -> str:
    """A hint for a path that is not there: a neighbour with a similar name, or the folder that is missing."""
    if not path.parent.is_dir():
        return "" if glob.has_magic(str(path.parent)) else f" (there is no folder {path.parent})"
    if path.exists() or glob.has_magic(path.name):
        return ""
    return did_you_mean(path.name, ["sample", *(neighbour.name for neighbour in path.parent.iterdir())])
