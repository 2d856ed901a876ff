"""The three plug points, and what their designs' names say: read from names and files, without torch."""

import hashlib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from .config import GPTConfig
from .errors import UserError
from .plugin import Extract, classes_in
from .siblings import parts_of

PlugPoint = Literal["norm", "block", "topology"]
PLUG_POINTS: tuple[PlugPoint, ...] = typing.get_args(PlugPoint)
NAMES_IN_FILES: dict[str, PlugPoint] = {"LayerNorm": "norm", "Block": "block", "Topology": "topology"}
"""What a candidate file calls its designs; each that it defines takes its plug point."""
NAMES_OF_OURS = ("LayerNorm", "CausalSelfAttention", "MLP", "GPTConfig")
"""What a file may use without defining it."""


def split_name(name: str) -> tuple[str, str] | None:
    """The file or module of a design's name, and its class; None for a registered name."""
    where, colon, class_name = name.rpartition(":")
    return (where, class_name) if colon else None


def designs_of_file(path: str) -> dict[str, str]:
    """A candidate file's designs: {"norm": "candidate.py:LayerNorm"}, for each class that it defines.

    The file is read, not run. Raises UserError for one that is not there, is not Python, or defines none.
    """
    found = classes_in(existing_file(f"model.variant is '{path}'", path))
    designs: dict[str, str] = {
        plug: f"{path}:{name}" for name, plug in NAMES_IN_FILES.items() if name in found
    }
    if not designs:
        raise UserError(
            f"model.variant is '{path}', which defines none of {', '.join(NAMES_IN_FILES)} at its top level"
            + "".join(f": it has {name}: `--model.{plug} {path}:{name}`" for name, plug in _likely(found)[:1])
        )
    return designs


def _likely(classes: Mapping[str, list[str]]) -> list[tuple[str, PlugPoint]]:
    """Classes that may be designs under another name, by what their constructors take; the last one first,
    because a file builds up to it."""
    found: list[tuple[str, PlugPoint]] = []
    for name, parameters in classes.items():
        if parameters[:1] == ["config"]:
            found.append((name, "topology" if parameters[1:2] == ["blocks"] else "block"))
        elif "norm" in name.lower():
            found.append((name, "norm"))
    return found[::-1]


def design_files(config: GPTConfig) -> dict[PlugPoint, Path]:
    """The files of designs that come from a file. Raises UserError for one that is not there."""
    files: dict[PlugPoint, Path] = {}
    for plug in PLUG_POINTS:
        place = split_name(getattr(config, plug))
        if place and place[0].endswith(".py"):
            files[plug] = existing_file(f"model.{plug} is '{getattr(config, plug)}'", place[0])
    return files


def design_fingerprint(config: GPTConfig) -> str | None:
    """A hash of the code of designs that come from a file: of the part that they need. None without any."""
    parts = [part.source for plug in design_files(config) for part in _parts(config, plug)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest() if parts else None


def files_to_keep(config: GPTConfig) -> dict[str, Path]:
    """The files of designs by where a run keeps them: `norm.py`, or where a design imports from files beside
    its own all of them under their names, `norm/my_norm.py` and `norm/helper.py`."""
    kept: dict[str, Path] = {}
    for plug, path in design_files(config).items():
        files = [part.path for part in _parts(config, plug)]
        kept |= {f"{plug}.py": path} if len(files) == 1 else {f"{plug}/{file.name}": file for file in files}
    return kept


def kept_design(folder: Path, plug: PlugPoint, name: str) -> str:
    """A design's name with the file that a run's `folder` keeps for its own: `folder/norm.py:Class`."""
    where, class_name = split_name(name) or ("", "")
    if where.endswith(".py"):
        for file in (folder / f"{plug}.py", folder / plug / Path(where).name):
            if file.is_file():
                return f"{file}:{class_name}"
    return name


def _parts(config: GPTConfig, plug: PlugPoint) -> list[Extract]:
    """What a design from a file needs of it and of the files beside it, its own file first."""
    path = design_files(config)[plug]
    return parts_of(path, [getattr(config, plug).rpartition(":")[2]], NAMES_OF_OURS)


def existing_file(sentence: str, path: str) -> Path:
    """The file, resolved. Raises UserError, which begins with `sentence`, where there is none."""
    found = Path(path).expanduser().resolve()
    if not found.is_file():
        raise UserError(f"{sentence}, but there is no file {found}")
    return found
