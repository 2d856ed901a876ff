"""Rewrite an lm-eval wheel without the tasks that NormLab does not name: `python slim_lm_eval.py WHEEL`."""

import sys
import zipfile
from pathlib import Path

KEPT = {"wikitext", "lambada", "arc", "hellaswag", "piqa", "winogrande"}


def is_kept(name: str) -> bool:
    """Whether a file of the wheel stays: all but other tasks' folders and the list of files."""
    parts = name.split("/")
    if parts[:2] != ["lm_eval", "tasks"] or len(parts) == 3:
        return not name.endswith("/RECORD")
    return parts[2] in KEPT


def main(path: str) -> None:
    """Replace the wheel at `path`."""
    wheel, slim = Path(path), Path(path + ".slim")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED) as new:
        names = [name for name in old.namelist() if is_kept(name)]
        for name in names:
            new.writestr(name, old.read(name))
        record = next(name for name in old.namelist() if name.endswith("/RECORD"))
        new.writestr(record, "".join(f"{name},,\n" for name in [*names, record]))
    slim.replace(wheel)


if __name__ == "__main__":
    main(sys.argv[1])
