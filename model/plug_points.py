"""The three plug points, and what their designs' names say: read from names and files, without torch."""

import hashlib
import typing
from pathlib import Path
from typing import Literal

from .config import GPTConfig
from .errors import UserError
from .plugin import classes_in, extract

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
    found = set(classes_in(existing_file(f"model.variant is '{path}'", path)))
    designs: dict[str, str] = {
        plug: f"{path}:{name}" for name, plug in NAMES_IN_FILES.items() if name in found
    }
    if not designs:
        raise UserError(
            f"model.variant is '{path}', which defines none of {', '.join(NAMES_IN_FILES)} at its top level"
        )
    return designs


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
    parts = [
        extract(path, [getattr(config, plug).rpartition(":")[2]], NAMES_OF_OURS).source
        for plug, path in design_files(config).items()
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest() if parts else None


def existing_file(sentence: str, path: str) -> Path:
    """The file, resolved. Raises UserError, which begins with `sentence`, where there is none."""
    found = Path(path).expanduser().resolve()
    if not found.is_file():
        raise UserError(f"{sentence}, but there is no file {found}")
    return found
