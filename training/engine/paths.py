"""Paths for DeepSpeed, which takes the path of a checkpoint for a pattern."""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def without_pattern(folder: Path) -> Iterator[Path]:
    """The folder, by a link where its path has brackets or other characters of a pattern."""
    if not glob.has_magic(str(folder)):
        yield folder
        return
    with TemporaryDirectory() as links:
        link = Path(links, "folder")
        link.symlink_to(folder.absolute())
        yield link
