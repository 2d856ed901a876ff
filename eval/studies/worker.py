"""A worker of a study: takes the next free run, trains it, notes how it ended, until nothing is left."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from data import DataConfig, keep_commits, open_data, settled, with_commits_of
from training.run.folder import RunFolder
from training.run.reader import read_json, read_summary
from training.run.search import ENDED, WantedRun, find_run
from training.run_files import PreflightFile

from ..judging.commands import Ended, Interrupted, Start
from ..judging.evaluation import evaluate_run
from ..judging.folders import held_folder
from ..judging.request import Trial, describe_design
from .outcomes import Outcomes, StudyFolder, read_outcome
from .plan import Cell, Fingerprints, Plan
from .queue import Decided, next_cells

LOOK_AGAIN_S = 2.0
"""Seconds after which a worker that waits for others looks whether a run is free."""


class Data:
    """What the runs' fingerprints say of their data, opened once for all runs that share it.

    Args:
        runs: the folder of all runs, in which a branch of a data set on the hub stays at one commit.
        say: is told what opening finds.
    """

    def __init__(self, runs: Path, say: Callable[[str], object]) -> None:
        self.runs, self.say = runs, say
        self._found: dict[DataConfig, tuple[DataConfig, dict[str, str], str | None]] = {}

    def of(self, config: DataConfig) -> tuple[DataConfig, dict[str, str], str | None]:
        """The config with what the source decides, the fingerprints, and what an older NormLab called it.

        Raises UserError or OSError.
        """
        if config not in self._found:
            self.runs.mkdir(parents=True, exist_ok=True)
            asked = with_commits_of(self.runs, config)
            corpus, validation = open_data(asked, self.say)
            found = settled(asked, corpus)
            keep_commits(self.runs, config, found)
            now, older = corpus.fingerprints
            fingerprints = {"data_fingerprint": now, "val_fingerprint": validation.fingerprint}
            self._found[config] = found, fingerprints, older
        return self._found[config]


class Worker:
    """One process that trains a study's runs, beside others or alone.

    Args:
        plan: of the study.
        folder: of the study.
        data: opens that of its runs.
        fingerprints: of that data, by size.
        start: runs a command; it raises `Interrupted` where this process was asked to stop.
        say: is told what happens.
        decided: when a sequential study needs no more seeds.
    """

    def __init__(
        self,
        plan: Plan,
        folder: StudyFolder,
        data: Data,
        fingerprints: Fingerprints,
        start: Start,
        say: Callable[[str], object],
        decided: Decided,
    ) -> None:
        self.plan, self.folder, self.data, self.fingerprints = plan, folder, data, fingerprints
        self.start, self.say, self.decided = start, say, decided

    def outcomes(self) -> Outcomes:
        """How runs have ended so far, whoever trained them."""
        return read_outcomes(self.plan, self.folder, self.fingerprints)

    def work(self, look: Callable[[Outcomes], object] = lambda outcomes: None) -> Outcomes:
        """Train until nothing is left, waiting for what other workers have under way.

        Args:
            look: is given the outcomes before each run of this worker, and at the end.

        Raises Interrupted, UserError or OSError.
        """
        waits = False
        while cells := next_cells(self.plan, outcomes := self.outcomes(), self.decided):
            if not waits:
                look(outcomes)
            # What ended with an error is tried again after the others.
            cells.sort(key=lambda cell: self.folder.tries(cell, self.key(cell)))
            if self._train_one(cells):
                waits = False
                continue
            if not waits:
                self.say(f"waiting for other workers, which have {len(cells)} run(s) under way")
            waits = True
            time.sleep(LOOK_AGAIN_S)
        if self.plan.study.evaluate:
            self._evaluate_all(outcomes)
        look(outcomes)
        return outcomes

    def _train_one(self, cells: list[Cell]) -> bool:
        """Train the first run that no other worker has; gives whether there was one."""
        for cell in cells:
            with self.folder.claimed(cell) as is_mine:
                if not is_mine:
                    continue
                tries = self.plan.study.rules.tries
                if self.folder.outcome(cell, self.key(cell), tries) is None:  # or another worker ended it
                    self.train(cell)
                return True
        return False

    def train(self, cell: Cell) -> None:
        """Train a run to its end, or find it, and note how it ended: an error of its own ends no study."""
        trial = self.plan.trial(cell)
        name = f"{cell.design} of size {cell.size} at rate {cell.rate}, seed {cell.seed}"
        with ExitStack() as held:
            found = self.wanted(trial)
            folder = held.enter_context(
                held_folder(
                    self.folder.runs,
                    f"{self.plan.study.name}_{cell.name}",
                    lambda: find_run(self.folder.runs, found),
                    self.say,
                )
            )
            if _status(folder) in ENDED:
                self.say(f"{name}: {folder} is there")
                ended = Ended(0, "")
            else:
                self.say(f"training {name}: {folder}")
                self._wait_until_free(folder)
                ended = self.start("train", [*trial.words, "--run_dir", str(folder)], self.plan.study.ranks)
            outcome = read_outcome(folder)
            if outcome is None:
                self._note_failure(cell, folder, ended)
                return
            self.folder.record(cell, self.key(cell), outcome.status, folder, outcome.reason)
            self.say(f"{name}: {outcome.reason or f'{outcome.loss:.4f} nats per token'}")

    def key(self, cell: Cell) -> str:
        """Of what a run would be now."""
        return self.plan.key(cell, self.fingerprints)

    def wanted(self, trial: Trial) -> WantedRun:
        """A run as it is found among others."""
        data, fingerprints, older = self.data.of(trial.recipe.data)
        design = {"design_fingerprint": describe_design(trial)["code_fingerprint"]}
        recipe = replace(trial.recipe, data=data)
        return WantedRun(recipe, trial.deepspeed, self.plan.study.ranks, fingerprints | design, older)

    def _wait_until_free(self, folder: Path) -> None:
        """A killed worker's run saves itself before it ends; until then it holds its folder."""
        lock, waits = FileLock(folder / "logs" / "rank0.lock"), False
        while Path(lock.lock_file).is_file():
            try:
                with lock.acquire(timeout=LOOK_AGAIN_S):
                    return
            except Timeout:
                if not waits:
                    self.say(f"waiting for {folder}, which is being trained still")
                waits = True

    def _note_failure(self, cell: Cell, folder: Path, ended: Ended) -> None:
        report = folder / "preflight.json"
        if report.is_file() and not (checks := read_json(report, PreflightFile))["passed"]:
            failed = [check for check in checks["checks"] if check["status"] == "fail"]
            reason = f"{failed[0]['name']}: {failed[0]['detail']}" if failed else "a check failed"
            self.folder.record(
                cell, self.key(cell), "refused", folder, f"refused by the pre-flight check: {reason}"
            )
            self.say(f"{cell.design} is refused by the pre-flight check: {reason}")
            return
        summary = read_summary(folder) if (folder / "summary.json").is_file() else {}
        if summary.get("status") == "interrupted" and "error" not in summary and ended.status in (0, 75):
            raise Interrupted  # by another than us: it is saved
        reason = str(summary.get("error") or ended.reason())
        self.folder.record(cell, self.key(cell), "failed", folder if folder.is_dir() else None, reason)
        again = self.folder.tries(cell, self.key(cell)) < self.plan.study.rules.tries
        self.say(f"{cell.name} failed: {reason}{'; it is tried again' if again else ''}")

    def _evaluate_all(self, outcomes: Outcomes) -> None:
        """Score the judged runs that no other worker is at."""
        for cell, outcome in outcomes.items():
            if outcome.is_finished and outcome.folder and cell.seed in self.plan.study.seeds_at_most:
                with self.folder.claimed(cell) as is_mine:
                    config = self.plan.trial(cell).recipe.eval
                    if is_mine and (problem := evaluate_run(outcome.folder, config, self.start, self.say)):
                        self.say(problem)


def read_outcomes(plan: Plan, folder: StudyFolder, data: Fingerprints) -> Outcomes:
    """How runs of a study have ended so far."""
    tries = plan.study.rules.tries
    found: Outcomes = {}
    for size, design, rate in plan.trials:
        for seed in (*plan.study.seeds_at_most, *plan.study.selection_seeds):
            cell = Cell(size, design, rate, seed)
            if (outcome := folder.outcome(cell, plan.key(cell, data), tries)) is not None:
                found[cell] = outcome
    return found


def _status(folder: Path) -> str | None:
    """Of a run that has begun; None where none has."""
    return read_summary(folder).get("status") if RunFolder(folder, rank=0).has_begun() else None
