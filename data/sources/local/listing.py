"""The files that a folder, a file or a glob here means: in one format, divided by split.

A path that exists as it is written is no pattern, whatever characters it has.
"""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..places import is_data, is_hidden, is_left_out, local_format, without_compression
from .splits import divided

_TABLES = (".txt", ".csv", ".tsv", ".arrow")
"""Ends of files that may be documents or about them."""


class Found(NamedTuple):
    """What a source here consists of.

    Attributes:
        format: One of `places.FILE_FORMATS`, `bin`, or the suffix of a rare format that `datasets` reads;
            None where there are no files.
        splits: Absolute paths by split, sorted. What is not divided is the first split that was asked for.
        notes: What a user may not expect, a sentence each.
    """

    format: str | None
    splits: dict[str, list[str]]
    notes: list[str]


def find_files(source: str, place: Path, key: str, wanted: Sequence[str]) -> Found:
    """The files of a folder, a glob, or a file that is named.

    Hidden and unfinished files are left out of a folder and of what a glob matches, with a note. A glob takes
    all that it matches, unless it matches training and held-out files.

    Args:
        source: What the user said, for messages.
        place: The path of it.
        key: The option that names the source, for messages.
        wanted: The splits that are asked for.
    """
    is_folder = place.is_dir()
    if place.is_file():
        root, pattern, found = place.parent, place.name, [place.name]
    elif is_folder:
        root, pattern, found = place, "", _below(place)
    else:
        root, pattern = literal_root(place)
        found = _matches(root, pattern)
    left_out = [] if place.is_file() else [path for path in found if is_left_out(path, pattern)]
    paths = sorted({*found} - {*left_out})
    format_, of_format = _of_one_format(paths)
    splits = divided(of_format, rest_is_train=not is_folder or format_ == "bin", wanted=wanted)
    if len(splits) < 2 and not is_folder:
        splits = {}
    if not splits and of_format:
        splits = {"train" if is_folder else wanted[0]: of_format}
    unread = sorted({*paths} - {path for of_split in splits.values() for path in of_split})
    notes = [*left_out_note(source, key, left_out), *_unread_note(source, key, unread, len(of_format))]
    base = os.path.abspath(root)
    absolute = {split: [os.path.join(base, path) for path in of_split] for split, of_split in splits.items()}
    return Found(format_, absolute, notes)


def literal_root(place: Path) -> tuple[Path, str]:
    """The folder that a path begins with as it is written, and the pattern below it."""
    root = Path(place.anchor)
    parts = place.parts[1:] if place.anchor else place.parts
    for number, part in enumerate(parts[:-1]):
        if not (root / part).is_dir():
            return root, "/".join(parts[number:])
        root = root / part
    return root, "/".join(parts[-1:])


def matching(folder: Path, pattern: str) -> tuple[list[str], list[str]]:
    """The files of a folder that a name or pattern means, relative to it, and those that are left out, which
    are hidden or not finished and not named outright."""
    if (folder / pattern).is_file():
        return [pattern], []
    root, rest = literal_root(folder / pattern)
    names = [os.path.relpath(root / path, folder) for path in _matches(root, rest)]
    left_out = {name for name in names if is_left_out(name, pattern)}
    return [name for name in names if name not in left_out], sorted(left_out)


def _matches(root: Path, pattern: str) -> list[str]:
    """The files below a folder that a pattern matches, hidden ones too, relative to it and sorted."""
    paths = glob.glob(pattern, root_dir=root, recursive=True, include_hidden=True)
    return sorted(path for path in dict.fromkeys(paths) if (root / path).is_file())


def _below(folder: Path) -> list[str]:
    """All files of a folder and the folders in it, relative to it and sorted; hidden folders are not entered,
    but their data is listed at their top."""
    found: list[str] = []
    home = os.path.realpath(folder)
    linked: set[str] = set()

    def is_new(path: str) -> bool:
        """Whether a folder is no link to one that has a path of its own here, nor to one around this."""
        if not os.path.islink(path):
            return True
        target = os.path.realpath(path)
        is_known = target in linked or os.path.commonpath([target, home]) in (target, home)
        linked.add(target)
        return not is_known

    for parent, folders, files in os.walk(folder, followlinks=True):
        below = os.path.relpath(parent, folder)
        is_entered = not any(map(is_hidden, Path(below).parts))
        folders[:] = [name for name in sorted(folders) if is_entered and is_new(os.path.join(parent, name))]
        found += (name if below == "." else f"{below}/{name}" for name in files)
    return sorted(path for path in found if (folder / path).is_file())


def _of_one_format(paths: Sequence[str]) -> tuple[str | None, list[str]]:
    """The format of most files, parquet in a draw, and the files of it.

    `.json` files count only where there is nothing else, as they often describe the others.
    """
    formats = {path: format_ for path in paths if (format_ := local_format(path))}
    if not formats:
        formats = _rare_formats(paths)
    counts = Counter(format_ for path, format_ in formats.items() if not path.lower().endswith(".json"))
    counts = counts or Counter(formats.values())
    if not counts:
        return None, []
    order = ("bin", "json", "parquet")
    most = max(counts, key=lambda one: (counts[one], order.index(one) if one in order else -1, one))
    return most, [path for path, format_ in formats.items() if format_ == most]


def _rare_formats(paths: Sequence[str]) -> dict[str, str]:
    """The suffix of each file that `datasets` has a reader for."""
    # imported only here: `datasets` is slow to load, and refusals should not wait for it
    from datasets.data_files import FILES_TO_IGNORE
    from datasets.packaged_modules import _EXTENSION_TO_MODULE

    known = {suffix for suffix, (reader, _) in _EXTENSION_TO_MODULE.items() if reader != "harbor"} | {".zip"}
    suffixes = {path: Path(without_compression(path)).suffix.lower() for path in paths}
    return {
        path: suffix
        for path, suffix in suffixes.items()
        if suffix in known and not is_data(path) and os.path.basename(path) not in FILES_TO_IGNORE
    }


def left_out_note(source: str, key: str, paths: Sequence[str]) -> list[str]:
    """The sentence about files that are left out by their names; none where there are none."""
    data = [path for path in paths if is_data(path)]
    if not data:
        return []
    count = "1 file" if len(data) == 1 else f"{len(data):,} files"
    return [
        f"{key}: {count} of {source} with the name of a hidden or unfinished one left out, the first is "
        f"{data[0]}."
    ]


def _unread_note(source: str, key: str, paths: Sequence[str], read: int) -> list[str]:
    data = [path for path in paths if is_data(path) and not path.lower().endswith(".json")]
    tables = [path for path in paths if path.lower().endswith(_TABLES)]
    data += tables if len(tables) > read else []  # a few are about the data
    if not data:
        return []
    return [
        f"{key}: not every file of {source} is read ({len(data)} are not, such as "
        f"{os.path.basename(data[0])}): a folder is read in one format, and where file names have a split in "
        "them, only those files."
    ]
