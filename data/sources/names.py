"""Hints for a name that does not exist."""

import difflib
import glob
from collections.abc import Sequence
from pathlib import Path


def nearest(given: str, names: Sequence[str]) -> str:
    """` (did you mean NAME?)`, or nothing where no name is close."""
    matches = difflib.get_close_matches(given, names, n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""


def nearest_path(path: Path) -> str:
    """A hint for a path that is not there: a neighbour with a similar name, or the folder that is missing."""
    if not path.parent.is_dir():
        return "" if glob.has_magic(str(path.parent)) else f" (there is no folder {path.parent})"
    if path.exists() or glob.has_magic(path.name):
        return ""
    return nearest(path.name, ["sample", *(neighbour.name for neighbour in path.parent.iterdir())])
