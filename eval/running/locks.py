"""Evaluations of one checkpoint by several processes: no task is scored twice at once."""

import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from training.run.reader import checkpoint_name


@contextmanager
def writing(run_dir: Path, step: int) -> Iterator[None]:
    """Around what reads, merges and writes the results of a checkpoint, which no other process does then."""
    with _lock(run_dir, step, "results"):
        yield


def take_turns(
    run_dir: Path,
    step: int,
    names: Iterable[str],
    is_done: Callable[[str], bool],
    say: Callable[[str], object],
) -> Iterator[str]:
    """Each task that is to be scored here; no other process gets it until the next is asked for.

    Those that nobody else scores come first. The others are waited for, and left out where they are scored
    then. A process that ends, however it ends, holds none.

    Args:
        run_dir: where the results go.
        step: of the checkpoint.
        names: of the tasks.
        is_done: whether a task has results by now.
        say: is told for whom this process waits.
    """
    locks = {name: _lock(run_dir, step, f"task {name}") for name in names}
    while locks:
        name = next((name for name, lock in locks.items() if _try(lock)), None)
        if name is None:
            name = next(iter(locks))
            say(f"{_holder(locks[name])} scores {name} at step {step} of {run_dir}: waiting for it")
            locks[name].acquire()
        lock = locks.pop(name)
        try:
            Path(lock.lock_file).write_text(f"process {os.getpid()} on {socket.gethostname()}")
            if not is_done(name):
                yield name
        finally:
            lock.release()


def _lock(run_dir: Path, step: int, what: str) -> FileLock:
    """It is held by an open file, which ends with its process."""
    name = re.sub(r"[^\w.-]", "_", f"{what}.lock")
    file = run_dir / "logs" / "eval_locks" / checkpoint_name(step) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file)


def _try(lock: FileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


def _holder(lock: FileLock) -> str:
    try:
        return Path(lock.lock_file).read_text() or "another process"
    except OSError:
        return "another process"
