"""The cause of death: of all ranks that end with an exception, summary.json names the one that failed first.

A rank that fails takes the others with it: they lose their connection to it, and say so. Each rank leaves a
file of its own, `logs/failure_rankN.json`, before it goes, so that the cause is told from its consequences
whichever of them is written last.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.files import write_json

from ..run.folder import RunFolder

if TYPE_CHECKING:
    from ..run.console import Console

LOCK_TIMEOUT_S = 10.0
_LOST_CONNECTION = re.compile(
    r"gloo|NCCL|ProcessGroup|Connection (was )?(closed|reset)|Broken pipe|Socket timeout", re.IGNORECASE
)


@dataclass(frozen=True)
class Failure:
    """How one rank ended.

    Attributes:
        rank: which one.
        time: when, in seconds since the epoch.
        error: the exception's class and the first line of its message.
        lost_connection: whether it says no more than that another rank, or the way to it, is gone.
        log: where the traceback is, from the run folder.
    """

    rank: int
    time: float
    error: str
    lost_connection: bool
    log: str


@contextmanager
def failures_recorded(run: RunFolder, world_size: int, console: "Console") -> Iterator[None]:
    """Around what may fail once all ranks have joined: the run folder says which rank failed first, and how.

    Every exception goes on. Of one that another rank's failure has caused the terminal says nothing, as that
    rank speaks for itself; the log has its traceback, with a note that names that rank.

    Args:
        run: claimed by all of its ranks before the first of them gets here, so that no failure of an
            earlier start is left in it.
        world_size: how many ranks this start has.
        console: this rank's.
    """
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # a full disk may be why the run fails, and is no other reason
            first = record_failure(run, error, world_size)
            if first.rank != run.rank:
                console.names_crash = False
                log = run.path / first.log
                error.add_note(f"rank {first.rank} failed first: {first.error} (traceback in {log})")
        raise


def record_failure(run: RunFolder, error: Exception, world_size: int) -> Failure:
    """Write this rank's failure, unless it has one, and the first of all ranks into summary.json.

    Returns:
        The first failure of all ranks, as far as they have written theirs.
    """
    if not run.failure_file.exists():
        write_json(run.failure_file, asdict(describe(run, error)))
    with run.locked_summary(LOCK_TIMEOUT_S) as summary:
        failures = read_failures(run.path, world_size)
        first = first_failure(failures)
        silent = sorted(set(range(world_size)) - {failure.rank for failure in failures})
        sentence = first.error
        if first.lost_connection and silent:
            ranks = ", ".join(map(str, silent))
            sentence += f" (rank {ranks} ended without an error of its own: was it killed?)"
        summary |= {
            "status": "failed",
            "error": sentence,
            "failed_rank": first.rank,
            "log": first.log,
        }
    return first


def describe(run: RunFolder, error: Exception) -> Failure:
    """This rank's failure, now."""
    lines = str(error).strip().splitlines()
    return Failure(
        rank=run.rank,
        time=time.time(),
        error=f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__,
        lost_connection=is_lost_connection(error),
        log=str(run.log_file.relative_to(run.path)),
    )


def is_lost_connection(error: BaseException) -> bool:
    """Whether an exception, or what it was raised from, is torch's on losing another rank.

    The network errors of the data are OSErrors, and causes of their own.
    """
    chain: BaseException | None = error
    while chain is not None:
        torch_says_so = any(kind.__name__ == "DistError" for kind in type(chain).__mro__)
        if torch_says_so or (isinstance(chain, RuntimeError) and _LOST_CONNECTION.search(str(chain))):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def read_failures(run_dir: Path, world_size: int) -> list[Failure]:
    """What the ranks of this start have written; files of further ranks are of an earlier, larger start."""
    files = (run_dir / "logs" / f"failure_rank{rank}.json" for rank in range(world_size))
    return [Failure(**json.loads(file.read_text())) for file in files if file.is_file()]


def first_failure(failures: list[Failure]) -> Failure:
    """The earliest that is more than a lost connection; where there is none, the earliest."""
    return min(failures, key=lambda failure: (failure.lost_connection, failure.time))
