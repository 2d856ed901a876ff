"""The cause of death: of all ranks that end too soon, `failure.json` names the one that failed first.

A rank that fails takes the others with it: they lose their connection to it, and say so. Each rank leaves a
file of its own, `logs/failure_rankN.json`, before it goes, so that the cause is told from its consequences
whichever of them is written last. A killed rank leaves none: another one of its host sees how it ended.
"""

import json
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout

from model.errors import FAILED, UserError
from model.files import write_json

from ..run.folder import RunFolder
from ..run.reader import last_step
from .disk import disk_sentence, keep_reserve, on_full_disk, reserve_of

if TYPE_CHECKING:
    from ..run.console import Console

LOCK_TIMEOUT_S = 10.0
CAUSE_WITHIN_S = 5.0
"""So long a rank that lost its connection waits for the word of, or on, the one that was the cause."""
KILLED_WITHIN_S = 20.0
"""A process that is killed closes its connections before it has ended. What is killed so long after the first
lost connection was ended for it: DeepSpeed's launcher kills after 30 s."""
_LOST_CONNECTION = re.compile(
    r"gloo|NCCL|ProcessGroup|Connection (was )?(closed|reset)|Broken pipe|Socket timeout", re.IGNORECASE
)


@dataclass(frozen=True)
class Failure:
    """How one rank ended.

    Attributes:
        rank: which one.
        host: where it ran.
        time: when, in seconds since the epoch.
        signal: the name of the one that ended it; None where none did.
        exception: its class; None where there was none.
        step: the last one in the run's metrics then.
        sentence: what is known of it, in one line.
        traceback: of the exception; empty where there was none.
        log: what the rank printed, from the run folder.
        lost_connection: whether it says no more than that another rank, or the way to it, is gone.
    """

    rank: int
    host: str
    time: float
    signal: str | None
    exception: str | None
    step: int | None
    sentence: str
    traceback: str
    log: str
    lost_connection: bool


@contextmanager
def failures_recorded(run: RunFolder, world_size: int, console: "Console") -> Iterator[None]:
    """Around what may fail once all ranks have joined: the run folder says which rank failed first, and how.

    Exceptions go on. What is no fault of NormLab's, a full disk or a UserError, is said in one sentence and
    raises SystemExit with FAILED; its traceback is in the log. Of a failure that another rank's has caused
    the terminal says nothing, as that rank speaks for itself; the log has it, with a note that names that
    rank.

    Args:
        run: claimed by all of its ranks before the first of them gets here, so that no failure of an
            earlier start is left in it.
        world_size: how many ranks this start has.
        console: this rank's.
    """
    try:
        if run.rank == 0:
            keep_earlier(run.path)
            keep_reserve(run.path)
        yield
    except Exception as error:
        own = describe(run, error)
        with suppress(OSError, Timeout):  # a full disk may be why the run fails, and is no other reason
            first = record_failure(run, own, world_size, CAUSE_WITHIN_S)
            if first.rank != run.rank:
                console.names_crash = False
                log = run.path / first.log
                error.add_note(f"rank {first.rank} failed first: {first.sentence} (see {log})")
                if first.signal and run.rank == min({0, 1} - {first.rank}):  # which cannot speak for itself
                    console.say_by_any_rank(f"error: {first.sentence}")
        if not isinstance(error, UserError) and disk_sentence(error, run.path) is None:
            raise
        traceback.print_exc(file=sys.stderr)
        if console.names_crash:
            console.say_by_any_rank(f"error: {own.sentence}")
        raise SystemExit(FAILED) from error
    finally:
        if run.rank == 0:
            with suppress(OSError):
                reserve_of(run.path).unlink(missing_ok=True)


def keep_earlier(run_dir: Path) -> None:
    """failure.json is of the latest start: an earlier one's becomes failure_1.json, failure_2.json ..."""
    file, number = run_dir / "failure.json", 1
    while (earlier := file.with_name(f"failure_{number}.json")).exists():
        number += 1
    with suppress(FileNotFoundError):
        file.rename(earlier)


def record_failure(run: RunFolder, failure: Failure, world_size: int, wait_s: float = 0.0) -> Failure:
    """Write how a rank ended, unless that is written, and the first of all ranks into the run folder.

    Args:
        run: the folder, as this rank has it.
        failure: this rank's, or one's that it saw die.
        world_size: how many ranks there are.
        wait_s: for another rank's, where this one has only lost its connection.

    Returns:
        The first failure of all ranks, as far as they have written theirs.
    """
    file = failure_file(run.path, failure.rank)
    if not file.exists():
        on_full_disk(run.path, lambda: write_json(file, asdict(failure)))
    first = _name_first(run, world_size)
    end = time.monotonic() + wait_s
    while first.lost_connection and world_size > 1 and time.monotonic() < end:
        time.sleep(0.05)
        if not first_failure(read_failures(run.path, world_size)).lost_connection:
            first = _name_first(run, world_size)
    return first


def record_fault(run: RunFolder, error: Exception | None, sentence: str) -> None:
    """Write who is at fault where all ranks end together, as some of them cannot go on. All ranks call it.

    Args:
        run: the folder, as this rank has it.
        error: what went wrong on this rank; None where it was another one's.
        sentence: why the run ends, the same on all ranks.
    """
    import torch.distributed as dist

    world_size = dist.get_world_size()
    with suppress(OSError, Timeout):  # a full disk may be why, and is no other reason
        if error is not None:
            record_failure(run, replace(describe(run, error), sentence=sentence), world_size)
    dist.barrier()
    with suppress(OSError, Timeout):
        if run.rank == 0 and read_failures(run.path, world_size):
            _name_first(run, world_size)  # its summary is the one that is written from here on


def record_death(run: RunFolder, rank: int, status: int, world_size: int) -> None:
    """Write how another rank ended that left no word; `status` is what `os.wait` gives of it."""
    record_failure(run, death(run, rank, status), world_size)


def _name_first(run: RunFolder, world_size: int) -> Failure:
    """Write failure.json, and what summary.json says of it."""
    with run.locked_summary(LOCK_TIMEOUT_S) as summary:
        failures = read_failures(run.path, world_size)
        first = first_failure(failures)
        silent = sorted(set(range(world_size)) - {failure.rank for failure in failures})
        sentence = first.sentence
        if first.lost_connection and silent:
            ranks = ", ".join(map(str, silent))
            sentence += f" (rank {ranks} ended without an error of its own: was it killed?)"
        summary |= {"status": "failed", "error": sentence, "failed_rank": first.rank, "log": first.log}
        facts = asdict(first) | {"sentence": sentence}
        del facts["lost_connection"]
        on_full_disk(run.path, lambda: write_json(run.path / "failure.json", facts))
    return first


def describe(run: RunFolder, error: BaseException) -> Failure:
    """This rank's failure, now."""
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    sentence = disk_sentence(error, run.path) or (f"{name}: {lines[0]}" if lines else name)
    return _failure(
        run,
        run.rank,
        str(error) if isinstance(error, UserError) else sentence,
        exception=name,
        trace="".join(traceback.format_exception(error)),
        lost_connection=is_lost_connection(error),
    )


def death(run: RunFolder, rank: int, status: int) -> Failure:
    """Of a rank on this host that left no word."""
    host, code = socket.gethostname(), os.waitstatus_to_exitcode(status)
    if code >= 0:
        return _failure(run, rank, f"rank {rank} on {host} ended with status {code} and left no word")
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = f"signal {-code}"
    hints = {
        "SIGKILL": ": by the system where memory ran out (`dmesg` says so), else by a person or a program",
        "SIGTERM": ": by a launcher, a person or a program, before it could save",
    }
    hint = hints.get(name, f": its log may say why ({log_of(rank)})")
    return _failure(run, rank, f"rank {rank} on {host} was ended by {name}{hint}", signum=name)


def _failure(
    run: RunFolder,
    rank: int,
    sentence: str,
    signum: str | None = None,
    exception: str | None = None,
    trace: str = "",
    lost_connection: bool = False,
) -> Failure:
    step = None
    with suppress(OSError):
        step = last_step(run.path)
    return Failure(
        rank=rank,
        host=socket.gethostname(),
        time=time.time(),
        signal=signum,
        exception=exception,
        step=step,
        sentence=sentence,
        traceback=trace,
        log=log_of(rank),
        lost_connection=lost_connection,
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


def log_of(rank: int) -> str:
    """What a rank prints, from the run folder."""
    return f"logs/rank{rank}.log"


def failure_file(run_dir: Path, rank: int) -> Path:
    """What a rank leaves of its failure, or one that saw it die."""
    return run_dir / "logs" / f"failure_rank{rank}.json"


def read_failures(run_dir: Path, world_size: int) -> list[Failure]:
    """What the ranks of this start have written; files of further ranks are of an earlier, larger start."""
    files = (failure_file(run_dir, rank) for rank in range(world_size))
    return [Failure(**json.loads(file.read_text())) for file in files if file.is_file()]


def first_failure(failures: Sequence[Failure]) -> Failure:
    """The earliest that is more than a lost connection; where there is none, the earliest.

    A rank that was killed long after the first lost connection is no cause.
    """
    lost = min((failure.time for failure in failures if failure.lost_connection), default=float("inf"))

    def is_consequence(failure: Failure) -> bool:
        return failure.lost_connection or (
            failure.exception is None and failure.time > lost + KILLED_WITHIN_S
        )

    return min(failures, key=lambda failure: (is_consequence(failure), failure.time))
