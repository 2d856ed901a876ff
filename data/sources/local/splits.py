"""Which split the files of a folder are, by the layout of all of them.

A word such as `val` makes a file one of validation where the names of the whole folder say so: `train-*` and
`validation-*`, `train/` and `val/`, `train.bin` and `val.bin`, `fineweb_train_*` and `fineweb_val_*`. In
`cc-test-suite.parquet` beside `part-a.parquet` it says nothing.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from ..places import without_compression

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""The split that a word means; the same words as those of `datasets`."""
_COUNTERS = frozenset({"of", "part", "shard", "chunk", "file", "split"})
_HELD_OUT_AT_AN_END = frozenset({"validation", "valid", "val"})
"""Words that a file of other names beside it is told apart by, as in `a.bin` and `a_val.bin`."""
_WORD = re.compile(r"[^\W\d_]+")
_PART = re.compile(r"[^\W_]+")
_HASH = re.compile(r"(?=.*\d)[0-9a-f]+")
_SHARDED = re.compile(r"data/(?P<split>\w+(\.\w+)*)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")
"""The names that `datasets` gives files, whatever their split is called."""


class Label(NamedTuple):
    """A split word in a name.

    Attributes:
        split: `train`, `validation` or `test`.
        word: The word itself.
        place: `whole` where the name has no other word beside counters, `end` where it is the first or the
            last, `inside` anywhere else.
        subject: The other words.
    """

    split: str
    word: str
    place: str
    subject: tuple[str, ...]


def label_of(name: str) -> Label | None:
    """The split word of a name without its suffix."""
    parts = [part for part in _PART.findall(name.lower()) if not _HASH.fullmatch(part)]
    words = [word for part in parts for word in _WORD.findall(part) if word not in _COUNTERS]
    known = [at for at, word in enumerate(words) if word in SPLIT_WORDS]
    if not known:
        return None
    at = 0 if 0 in known else known[-1]
    place = "whole" if len(words) == 1 else "end" if at in (0, len(words) - 1) else "inside"
    return Label(SPLIT_WORDS[words[at]], words[at], place, (*words[:at], *words[at + 1 :]))


def meaning(split: str) -> str:
    """The usual name of a split, `validation` for `val`."""
    return SPLIT_WORDS.get(split, split)


def divided(paths: Sequence[str], rest_is_train: bool, wanted: Sequence[str] = ()) -> dict[str, list[str]]:
    """The files of each split; none at all where the names do not divide them.

    Args:
        paths: All files, relative to their folder.
        rest_is_train: Whether a file without a split word beside `train` ones is training's too; else it is
            in no split.
        wanted: Splits that are asked for, whose names may be others, as `datasets` gives them to files.
    """
    sharded = {path: found["split"] for path in paths if (found := _SHARDED.fullmatch(path))}
    are_splits = any(label.place != "inside" for one in sharded.values() if (label := label_of(one)))
    if are_splits or not {*sharded.values()}.isdisjoint(wanted):
        return _by_split(sharded)
    labels = {path: label for path in paths if (label := _label_of_path(path))}
    if len(labels) == len(paths) and _are_both(labels.values()):
        return _by_split({path: label.split for path, label in labels.items()})
    labels = {path: label for path, label in labels.items() if label.place != "inside"}
    train = [label for label in labels.values() if label.split == "train"]
    subjects = {label.subject for label in train}
    pairs = any(label.subject in subjects for label in labels.values() if label.split != "train")
    if pairs or any(label.place == "whole" for label in train):
        split_of = {path: label.split for path, label in labels.items()}
        if rest_is_train:
            split_of = {path: split_of.get(path, "train") for path in paths}
        return _by_split(split_of)
    held_out = {
        path: label.split
        for path, label in labels.items()
        if label.split != "train" and (label.place == "whole" or label.word in _HELD_OUT_AT_AN_END)
    }
    return _by_split({path: held_out.get(path, "train") for path in paths}) if held_out else {}


def supplied_split(splits: Sequence[str], trained_on: str) -> str | None:
    """Which of a source's splits is held out for what is trained on: one of validation, else one of test."""
    own = label_of(trained_on)
    subject = own.subject if own else ()
    labels = {split: label for split in splits if (label := label_of(split)) and label.subject == subject}
    is_held_out = {label.split for label in labels.values()} - {"train"}
    wanted = "validation" if "validation" in is_held_out else "test"
    named = (split for split, label in labels.items() if label.split == wanted and split != trained_on)
    return next(named, None)


def _label_of_path(path: str) -> Label | None:
    """A folder's whole name counts before the file's, and that before a part of a folder's name."""
    place = PurePosixPath(without_compression(path))
    of_folders = [label for folder in reversed(place.parts[:-1]) if (label := label_of(folder))]
    of_file = label_of(place.stem)
    labels = [label for label in of_folders if label.place == "whole"]
    labels += [of_file] if of_file and of_file.place != "inside" else []
    labels += of_folders + ([of_file] if of_file else [])
    return labels[0] if labels else None


def _are_both(labels: Iterable[Label]) -> bool:
    splits = {label.split for label in labels}
    return "train" in splits and len(splits) > 1


def _by_split(split_of: dict[str, str]) -> dict[str, list[str]]:
    """The paths of each split, in the order of the paths."""
    found: dict[str, list[str]] = {}
    for path, split in split_of.items():
        found.setdefault(split, []).append(path)
    return found
