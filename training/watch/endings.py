"""All that sees to it that a run's end is explained: who failed first, who died, and when it last lived."""

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from model.errors import FAILED, UserError, print_error
from model.files import append_text
from model.redaction import redact

from ..engine.environment import world_size_from_environment
from ..run.folder import RunFolder
from .disk import disk_sentence
from .failures import (
    CAUSE_WITHIN_S,
    LOCK_TIMEOUT_S,
    Failure,
    describe,
    failure_file,
    failures_recorded,
    keep_earlier,
    read_failures,
    record_death,
    record_failure,
)
from .heartbeat import heart_beating
from .others import others_watched, this_process

if TYPE_CHECKING:
    from ..engine.ranks import Ranks
    from ..run.console import Console


@contextmanager
def run_watched(run: RunFolder, ranks: "Ranks", console: "Console") -> Iterator[None]:
    """Around a training, on all ranks once they have joined: see `failures_recorded`, which raises."""
    import torch.distributed as dist

    members: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(members, this_process(ranks.rank))
    died = partial(record_death, run, world_size=ranks.world_size)
    with (
        others_watched(ranks.rank, died, members),
        heart_beating(run),
        failures_recorded(run, ranks.world_size, console),
    ):
        yield


def end_start(run: RunFolder | None, error: Exception, console: "Console | None", began: float) -> int:
    """The end of a start that comes to no training: its exit status, unless the error goes on.

    A UserError is a refusal, and changes nothing. Anything else is a failure, and the run folder says which
    rank failed first and how. That rank says it too, in one sentence where it is an OSError, which is what
    the machine or the network did.

    Args:
        run: what was to be trained; None where that is not known yet, or nothing was.
        error: why it is not.
        console: this rank's, where it has one yet.
        began: when the command began, in seconds since the machine did.
    """
    if isinstance(error, UserError):
        return console.fail(error) if console else print_error(error)
    first = _record(run, error, console, began) if run else None
    is_first = run is None or first is None or first.rank == run.rank
    if not isinstance(error, OSError):
        if console:
            console.names_crash = is_first
        raise error
    if console:
        traceback.print_exc(file=sys.stderr)
    if run is None or first is None:
        console.fail(error) if console else print_error(error)
    elif is_first:
        sentence = f"error: {disk_sentence(error, run.path) or error}"
        console.say_by_any_rank(sentence) if console else print(redact(sentence), file=sys.stderr)
    return FAILED


def _record(run: RunFolder, error: Exception, console: "Console | None", began: float) -> Failure | None:
    """The first failure of this start's ranks, as far as they have written theirs.

    None, and nothing is written, where another run is at work there, or one lies there that `--restart` has
    not put aside yet.
    """
    with suppress(UserError, OSError, Timeout):  # a full disk may be why, and is no other reason
        if run.restarts and RunFolder(run.path, run.rank).has_begun():
            return None
        if not run.is_claimed:
            run.claim(wait_s=0)
        if not console:  # with one it is the log that stderr goes to
            append_text(run.log_file, redact("".join(traceback.format_exception(error))))
        seconds, world_size = time.clock_gettime(time.CLOCK_BOOTTIME) - began, world_size_from_environment()
        with run.summary_lock.acquire(timeout=LOCK_TIMEOUT_S):
            _forget_earlier(run.path, time.time() - seconds, world_size)
        return record_failure(run, describe(run, error), world_size, CAUSE_WITHIN_S)
    return None


def _forget_earlier(run_dir: Path, began: float, world_size: int) -> None:
    """What was written before this start `began`, in seconds since the epoch, is none of its failures.

    Once all ranks have claimed the folder nothing is.
    """
    for failure in read_failures(run_dir, world_size):
        if failure.time < began:
            failure_file(run_dir, failure.rank).unlink(missing_ok=True)
    file = run_dir / "failure.json"
    if file.is_file() and file.stat().st_mtime < began:
        keep_earlier(run_dir)
