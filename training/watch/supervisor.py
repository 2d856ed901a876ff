"""A training command started again after failures, for as long as that helps."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from model.errors import DIVERGED, FAILED, INTERRUPTED, REFUSED, UserError

from ..run.reader import is_locked, last_step, read_json, read_recipe
from ..run.restart import RUN_FILES, without_restart
from ..run_files import FailureFile, SummaryFile

LONGEST_WAIT_S = 900.0
LEFT_BEHIND_S = 60.0
"""So long ranks that outlive their launcher may save and end by themselves; then they are ended."""
LOOK_EVERY_S = 0.2
SUMMARY, FAILURE = "summary.json", "failure.json"
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@dataclass(frozen=True)
class Plan:
    """What is asked of a supervisor.

    Attributes:
        command: what it starts. Its `--restart` is for the run that is there at first, and not for those that
            it begins itself.
        run_dir: where that trains.
        max_restarts: so many restarts in a row may bring the run no further.
        wait_s: seconds before the first restart; each in a row that brings it no further waits twice as long,
            up to a quarter of an hour.
    """

    command: Sequence[str]
    run_dir: Path
    max_restarts: int
    wait_s: float


def run_dir_of(command: Sequence[str]) -> Path:
    """The run folder that a training command names. Raises UserError where it names none."""
    found = None
    for word, following in zip(command, (*command[1:], ""), strict=True):
        if word == "--run_dir":
            found = following
        elif word.startswith("--run_dir="):
            found = word.partition("=")[2]
    if not found:
        raise UserError(
            "the command has no --run_dir, by which its progress is seen: give it one, as in "
            "supervise.py -- deepspeed train.py ... --run_dir DIR"
        )
    return Path(found)


class Supervisor:
    """Starts a command until it has ended well, or to start it again is of no use.

    SIGTERM, SIGINT, SIGUSR1 and SIGHUP go on to all ranks of the command, which save and end; after that
    nothing is started again.

    Args:
        plan: what to start and how often.
        say: is told each start, its end and why.
    """

    def __init__(self, plan: Plan, say: Callable[[str], object]) -> None:
        self._plan, self._say = plan, say
        self._asked: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stamps: dict[str, int | None] = {}
        self._command, self._goes_on = list(plan.command), without_restart(plan.command)
        self._before = _inodes(plan.run_dir)

    def run(self) -> int:
        """Returns the exit status of the last start; INTERRUPTED where a signal ended it."""
        before = {signum: signal.signal(signum, self._pass_on) for signum in PASSED_ON}
        try:
            return self._run()
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _run(self) -> int:
        in_vain, furthest = 0, last_step(self._plan.run_dir) or 0
        while True:
            status, why = self._start()
            if status != REFUSED:
                self._end_what_is_left()
            if status in (0, REFUSED, DIVERGED):
                self._say(f"the command {why}")
                return status
            if self._asked is not None:
                self._say(f"{signal.Signals(self._asked).name} was received, and the command {why}")
                return FAILED if status == FAILED and self._summary().get("status") == "failed" else 75
            if status == INTERRUPTED and (reason := self._wanted_to_stop()):
                self._say(f"the command {why}: {reason}")
                return INTERRUPTED
            is_aside = not self._before.items() & _inodes(self._plan.run_dir).items()
            if is_aside and self._command != self._goes_on:  # what is there now is to go on
                self._command, furthest = self._goes_on, 0
            step = last_step(self._plan.run_dir) or 0
            in_vain = 0 if step > furthest else in_vain + 1
            furthest = max(step, furthest)
            if in_vain > self._plan.max_restarts:
                times = "start" if in_vain == 1 else f"{in_vain} starts in a row"
                self._say(f"the command {why}; {times} came no further than step {furthest}: it is given up")
                return FAILED
            wait_s = min(self._plan.wait_s * 2 ** max(0, in_vain - 1), LONGEST_WAIT_S)
            where = f"at step {step}" if step else "before its first step"
            self._say(f"the command {why}, {where}; it is started again in {wait_s:g} s")
            self._sleep(wait_s)
            if self._asked is not None:
                self._say(f"{signal.Signals(self._asked).name} was received: nothing is started again")
                return INTERRUPTED

    def _start(self) -> tuple[int, str]:
        """Start the command and wait for its end: its status as ours have it, and what is said of it."""
        self._stamps = {name: self._stamp(name) for name in (SUMMARY, FAILURE)}
        try:
            # A session of its own: a Ctrl-C on this terminal comes here, and goes on to the ranks from here.
            self._process = subprocess.Popen(self._command, start_new_session=True)
        except OSError as error:
            return REFUSED, f"cannot be started: {error}"
        if self._asked is not None:
            self._pass_on(self._asked, None)
        # not wait: a handler that comes meanwhile would look for the process's end too
        while (code := self._process.poll()) is None:
            time.sleep(LOOK_EVERY_S)
        return self._verdict(code)

    def _verdict(self, code: int) -> tuple[int, str]:
        """A launcher's status is the first rank's that failed, and 0 also where the launcher was killed."""
        said = self._summary().get("status")
        if code == 0:
            ends = {"finished": 0, "interrupted": INTERRUPTED, "diverged": DIVERGED}
            if said not in ends:
                return FAILED, "ended with status 0 before its run: its launcher was killed perhaps"
            code = ends[said]
        if code == 0:
            return 0, "is finished"
        if code == REFUSED:
            return REFUSED, "was refused: its last words say what to change"
        if code == DIVERGED:
            return DIVERGED, "diverged"
        if code == INTERRUPTED:
            return INTERRUPTED, "was stopped and has saved"
        if said == "failed" and (sentence := self._sentence()):
            return FAILED, f"failed: {sentence}"
        signum = -code if code < 0 else code - 128 if 128 < code < 160 else 256 - code if code > 192 else 0
        with suppress(ValueError):
            return FAILED, f"ended without a word: by {signal.Signals(signum).name}"
        return FAILED, f"ended with status {code}"

    def _summary(self) -> dict[str, Any]:
        """summary.json, where this start has written it or the run was finished before."""
        with suppress(UserError, OSError):
            summary = read_json(self._plan.run_dir / SUMMARY, SummaryFile)
            is_kept = summary.get("status") == "finished" and self._command == self._goes_on
            if is_kept or self._stamp(SUMMARY) != self._stamps[SUMMARY]:
                return summary
        return {}

    def _stamp(self, name: str) -> int | None:
        with suppress(OSError):
            return (self._plan.run_dir / name).stat().st_mtime_ns
        return None

    def _sentence(self) -> str | None:
        """Why this start failed, as it has written it."""
        with suppress(UserError, OSError, KeyError):
            if self._stamp(FAILURE) != self._stamps[FAILURE]:
                return str(read_json(self._plan.run_dir / FAILURE, FailureFile)["sentence"])
        return self._summary().get("error")

    def _wanted_to_stop(self) -> str | None:
        """Why a run that was stopped is not to go on at once; None where nobody here asked for it."""
        if os.environ.get("SLURM_JOB_ID"):
            return "Slurm's job is over soon, and goes on when it is queued again"
        with suppress(UserError, OSError):
            train = read_recipe(self._plan.run_dir).get("train") or {}
            if train.get("max_minutes") is not None:
                return "train.max_minutes is a share of the work; the same command does the next"
            if (name := train.get("stop_file")) and (self._plan.run_dir / name).exists():
                return f"train.stop_file {name} is there; remove it and give the same command to go on"
        return None

    def _pass_on(self, signum: int, frame: object) -> None:
        self._asked = signum
        if self._process is not None and self._process.poll() is None:
            for process in ranks_below(self._process.pid):
                with suppress(psutil.Error, OSError):
                    process.send_signal(signum)

    def _end_what_is_left(self) -> None:
        """Wait for ranks that have outlived their launcher, or end them: the next start needs the folder."""
        assert self._process is not None
        for signum, wait_s in ((None, LEFT_BEHIND_S), (signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0)):
            if signum is not None:
                try:
                    os.killpg(self._process.pid, signum)
                except ProcessLookupError:  # those that are there are of another host, or no ranks of this
                    return
                self._say(f"ranks of the last start were still there: they got {signum.name}")
            end = time.monotonic() + wait_s
            while time.monotonic() < end:
                if not any(map(is_locked, self._plan.run_dir.glob("logs/rank*.lock"))):
                    return
                time.sleep(LOOK_EVERY_S)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._asked is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_EVERY_S))


def _inodes(run_dir: Path) -> dict[str, int]:
    """The files and folders of a run that `--restart` puts aside, by name."""
    there = (run_dir / name for name in RUN_FILES)
    return {path.name: path.stat().st_ino for path in there if path.exists()}


def ranks_below(pid: int) -> list[psutil.Process]:
    """The ranks that a command has started on this host; the command itself where it has none of its own.

    A launcher ends its ranks one after the other, and each by force after a time. Told themselves, they save
    together. srun and ssh have their ranks elsewhere, and pass on what they get.
    """
    command = psutil.Process(pid)
    outside = _rank(psutil.Process())
    found = []
    with suppress(psutil.Error):
        for process in command.children(recursive=True):
            with suppress(psutil.Error):  # it ends now
                parent = process.parent()
                if _rank(process) != outside and (parent is None or _rank(parent) == outside):
                    found.append(process)
    return found or [command]


def _rank(process: psutil.Process) -> str | None:
    with suppress(psutil.Error, OSError):
        return process.environ().get("RANK")
    return None


def say(sentence: str) -> None:
    """A line of progress."""
    print(f"supervise: {sentence}", file=sys.stderr, flush=True)
