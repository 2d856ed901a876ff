"""Random kills: the same command again and again, until the run has ended; and then nothing may differ."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .ambush import Ambush, operations
from .jobs import Job, wait_until
from .runs import Bench, Stage, operations_of, seconds_of

STAGES = {
    "stays": (Stage(2, 18),),
    "moves": (Stage(2, 6), Stage(1, 12), Stage(2, 18)),
}
"""Two runs: one on two ranks, and one that goes on on another number of ranks, which converts checkpoints."""
KINDS = ("clock", "writing", "clock", "conversion", "writing")
"""Kinds of moments, by turns."""
LAUNCHED_EVERY = 10
"""Every so many kills the real launcher starts the ranks, whose imports take seconds."""
SURVIVORS_S = 40.0
"""So long after one rank was killed the others may need to end. Where they had not joined yet they wait for
it until their launcher ends them, which for ranks that were forked is done here."""
JOINED = "each step: "
"""What a run says once its ranks have joined."""
IMPORTS_S = 6.0
"""What a launched start takes more than a forked one, about."""
SOONER = 0.9
"""A moment by the clock that was too late for a start comes so much sooner in the next."""
MOST_STARTS = 40
"""A run that so many starts did not bring to its end never ends."""


@dataclass(frozen=True)
class Moment:
    """When who is killed, drawn from the seed and the kill's number alone.

    Attributes:
        kind: by the clock, or inside the writing or the conversion of a checkpoint.
        rank: the one that is killed; None kills all.
        launched: whether DeepSpeed's launcher starts the run.
        share: where between the first and the last moment, from 0 to 1.
        delay_s: seconds after the file operation.
    """

    kind: str
    rank: int | None
    launched: bool
    share: float
    delay_s: float

    @classmethod
    def draw(cls, seed: int, number: int) -> "Moment":
        chance = random.Random(f"{seed} {number}")
        launched = number % LAUNCHED_EVERY == LAUNCHED_EVERY - 1
        kind = "clock" if launched else KINDS[number % len(KINDS)]
        rank = chance.choice((0, 1, None, None))
        return cls(
            kind=kind,
            rank=0 if kind == "conversion" and rank else rank,  # rank 0 converts alone
            launched=launched,
            share=chance.random(),
            delay_s=chance.choice((0.0, chance.uniform(0, 0.02))),
        )


class Kills:
    """The kills of one torture, which goes on where it stopped.

    Args:
        bench: where the runs lie.
        seed: draws the moments.
        say: is told of each kill and of each run that has ended.
    """

    def __init__(self, bench: Bench, seed: int, say: Callable[[str], None]) -> None:
        self._bench, self._seed, self._say = bench, seed, say
        self._missed = 0  # starts in a row that ended before their moment came
        self._file = bench.folder / "kills.json"
        self.found: dict[str, Any] = {"kills": [], "runs": {}, "problems": [], "stage": {}, "starts": {}}
        if self._file.is_file():
            self.found = json.loads(self._file.read_text())

    def play(self, kills: int) -> None:
        """Kill so many times, and let the runs that are under way end."""
        while len(self.found["kills"]) < kills:
            number = len(self.found["kills"])
            moment = Moment.draw(self._seed, number)
            name = "moves" if moment.kind == "conversion" or number % 4 == 0 else "stays"
            self._start(name, moment, number)
        for name in STAGES:
            while self.found["starts"].get(name):
                self._start(name, None, kills)

    def differences(self) -> int:
        """What differed in all runs, and what else was not as it should be."""
        return len(self.found["problems"])

    def _start(self, name: str, moment: Moment | None, number: int) -> None:
        """Start a run at its present stage, and kill it at the moment, if it comes."""
        stages, reference = STAGES[name], self._bench.reference(STAGES[name])
        of_name = self.found["runs"].get(name, 0)
        run_dir = self._bench.folder / "killed" / f"{name}{of_name}"
        self._starts(name, self.found["starts"].get(name, 0) + 1)
        index = self.found["stage"].get(name, 0)
        stage = stages[index]
        log = self._bench.folder / "ambush.txt"
        log.unlink(missing_ok=True)
        ambushes = self._ambushes(moment, reference, index, stage, log)
        launched = moment is not None and moment.launched
        job = self._bench.start_stage(
            run_dir,
            stage,
            len(stages) > 1,
            ambushes=ambushes,
            launched=launched and stage.ranks > 1,
        )
        after_s = moment.share * seconds_of(reference, index) + IMPORTS_S * launched if moment else 0.0
        after_s *= SOONER**self._missed
        killed = self._kill(job, moment, stage, after_s, bool(ambushes))
        self._missed = 0 if killed else self._missed + 1
        if killed and moment:
            done = operations(log)
            place = done[-1].replace(str(run_dir) + os.sep, "") if ambushes and done else ""
            self._note(name, moment, index, place or f"{after_s:.2f} s after the start")
            if not job.is_over() and JOINED not in job.printed():
                job.send(signal.SIGTERM)
                wait_until(job.is_over, SURVIVORS_S)
            if not job.is_over():
                self._problem(
                    f"kill {number} of {run_dir}: a rank that was left had not ended after {SURVIVORS_S:g} s"
                )
            job.kill()
            return
        statuses = job.statuses()
        job.kill()
        if set(statuses) != {0}:
            self._problem(f"{run_dir} ended with {statuses} without a kill: {job.printed()[-2000:]}")
            self._next_run(name)
        elif index + 1 < len(stages):
            self.found["stage"][name] = index + 1
            self._write()
        else:
            self._compare(name, run_dir, reference)
        if self.found["starts"].get(name, 0) > MOST_STARTS:
            self._problem(f"{run_dir} has not ended after {MOST_STARTS} starts")
            self._next_run(name)

    def _ambushes(
        self, moment: Moment | None, reference: Path, index: int, stage: Stage, log: Path
    ) -> dict[int, Ambush]:
        """Who lies in wait for this moment; nobody where this stage has no such moments."""
        if moment is None or moment.kind == "clock":
            return {}
        inside = ".universal" if moment.kind == "conversion" else "/checkpoints/"
        rank = (moment.rank or 0) % stage.ranks
        if not (most := operations_of(reference, index, rank, inside)):
            return {}
        at = 1 + int(moment.share * most)
        return {rank: Ambush(inside, log, at, moment.delay_s, kills_all=moment.rank is None)}

    def _kill(
        self, job: Job, moment: Moment | None, stage: Stage, after_s: float, lies_in_wait: bool
    ) -> bool:
        """Whether somebody was killed; when this returns, all have ended or SURVIVORS_S have passed."""
        if moment is None or (moment.kind != "clock" and not lies_in_wait):
            wait_until(job.is_over, 5 * SURVIVORS_S)
            return False
        if moment.kind == "clock":
            wait_until(job.is_over, after_s)
            if job.is_over():
                return False
            rank = None if moment.rank is None else moment.rank % stage.ranks
            if rank is not None and len(job.rank_pids()) < stage.ranks:  # the launcher is not there yet
                wait_until(job.is_over, 5 * SURVIVORS_S)
                return False
            job.send(signal.SIGKILL, None if rank is None else [rank])
        else:
            wait_until(lambda: any(status is not None for status in job.statuses()), 5 * SURVIVORS_S)
        wait_until(job.is_over, SURVIVORS_S)
        return -signal.SIGKILL in job.statuses() or moment.launched

    def _compare(self, name: str, run_dir: Path, reference: Path) -> None:
        found = self._bench.differences(run_dir, reference)
        starts = self.found["starts"][name]
        self._say(f"{run_dir.name} has ended after {starts} starts: {len(found)} differences")
        for difference in found:
            self._problem(f"{run_dir}: {difference}")
        if not found:
            shutil.rmtree(run_dir)
        self._next_run(name)

    def _next_run(self, name: str) -> None:
        self.found["runs"][name] = self.found["runs"].get(name, 0) + 1
        self.found["stage"][name] = 0
        self._starts(name, 0)

    def _starts(self, name: str, count: int) -> None:
        self.found["starts"][name] = count
        self._write()

    def _note(self, name: str, moment: Moment, stage: int, place: str) -> None:
        self.found["kills"].append(asdict(moment) | {"run": name, "stage": stage, "at": place})
        self._write()
        who = "all ranks" if moment.rank is None else f"rank {moment.rank}"
        self._say(f"kill {len(self.found['kills'])}: {who}, {moment.kind}, {place}")

    def _problem(self, sentence: str) -> None:
        self.found["problems"].append(sentence)
        self._say(sentence)
        self._write()

    def _write(self) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self.found))
        os.replace(partial, self._file)
