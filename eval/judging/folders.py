"""Which folder a run of a judgment has, while other judgments look for theirs beside it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from training.run.folder import RunFolder

LOOK_AGAIN_S = 2.0


@contextmanager
def held_folder(
    runs: Path, name: str, find: Callable[[], Path | None], say: Callable[[str], object]
) -> Iterator[Path]:
    """The folder of a run, held against other judgments: two of them train a shared baseline once.

    Args:
        runs: the folder of all runs.
        name: for a new folder; a number follows where another run has it.
        find: the folder of this run where there is one.
        say: is told where another judgment has to be waited for.
    """
    runs.mkdir(parents=True, exist_ok=True)
    waits = False
    while True:
        folder = find() or _free_folder(runs, name)
        lock = FileLock(runs / f".{folder.name}.lock")
        try:
            lock.acquire(timeout=LOOK_AGAIN_S)
        except Timeout:
            if not waits:
                say(f"waiting for another judgment, which trains in {folder}")
            waits = True
            continue
        try:
            # The other may have begun or ended a run there since.
            if folder == (find() or _free_folder(runs, name)):
                yield folder
                return
        finally:
            lock.release()


def _free_folder(runs: Path, name: str) -> Path:
    number, folder = 1, runs / name
    while RunFolder(folder, rank=0).has_begun():
        number += 1
        folder = runs / f"{name}_{number}"
    return folder
