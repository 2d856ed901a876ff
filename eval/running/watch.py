"""Runs under way: their checkpoints as they appear, until training ends."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from model.errors import UserError
from training.run.reader import is_being_trained, read_summary

from .job import Job, Request

LOOK_EVERY_S = 10.0


def watched(requests: Sequence[Request], say: Callable[[str], object]) -> Iterator[Job]:
    """A job for each checkpoint that a request stands for, once, as soon as it is there.

    Runs take turns. The end comes when all of them have ended and their checkpoints are scored.

    Args:
        requests: each of a run, which may have no checkpoint yet.
        say: is told what is waited for, and how each run ended.
    """
    under_way, done, waited_for = list(requests), set(), None
    while under_way:
        new = 0
        for request in list(under_way):
            ending = how_it_ended(request.source)  # asked first: then its last checkpoint is seen
            for job in [job for job in _jobs(request) if (job.source, job.step) not in done][:1]:
                done.add((job.source, job.step))
                new += 1
                yield job
                ending = None
            if ending:
                say(ending)
                under_way.remove(request)
        if under_way and not new:
            runs = ", ".join(str(request.source) for request in under_way)
            if runs != waited_for:
                say(f"waiting for checkpoints of {runs}")
                waited_for = runs
            time.sleep(LOOK_EVERY_S)


def how_it_ended(run_dir: Path) -> str | None:
    """A sentence on a run that nobody trains any more; None while it is under way."""
    summary = read_summary(run_dir) if (run_dir / "summary.json").is_file() else {}
    status = summary.get("status")
    if status == "finished":  # its process may evaluate now
        return f"{run_dir} is finished"
    if is_being_trained(run_dir):
        return None
    if status == "running":
        return f"{run_dir} is not trained any more: its process ended without a word"
    return f"{run_dir} is {status or 'not being trained'}"


def _jobs(request: Request) -> list[Job]:
    try:
        return request.jobs()
    except UserError:  # no checkpoint yet, or none that it stands for
        return []
