"""How a study's runs ended, kept in its folder, where several workers and nodes see it."""

import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypedDict

from filelock import FileLock, Timeout

from model.files import write_json
from training.divergence.losses import ended_above_floor
from training.run.reader import read_json, read_summary

from .plan import Cell

Status = Literal["finished", "diverged", "failed", "refused", "blew up"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: `failed` with an error, `refused` by the pre-flight check, both without a loss; `blew up` with
            a loss that stands far above those of its arm.
        loss: the final validation loss in nats per token; NaN where there is none.
        reason: why there is none.
        folder: of the run; None where there is none, as in a simulation.
        spike: how far the training loss ended above its best, where it did not come back; else 0.
        floor: the loss of a model that knows token frequencies only; infinite where it is not known.
        above_floor: whether the run ended clearly above what guessing every token alike scores.
    """

    status: Status
    loss: float = math.nan
    reason: str = ""
    folder: Path | None = None
    spike: float = 0.0
    floor: float = math.inf
    above_floor: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether there is a loss to judge by."""
        return self.status == "finished" and math.isfinite(self.loss)


Outcomes = dict[Cell, Outcome]


class Record(TypedDict):
    """A file of `cells/`: how a run ended."""

    key: str
    status: Status
    folder: str | None
    reason: str
    tries: int


class StudyFolder:
    """`RUNS/studies/NAME`: what is registered, how each run ended, who works on which, the results.

    Attributes:
        path: of the folder.
        runs: the folder of all run folders.
    """

    def __init__(self, runs: Path, name: str) -> None:
        self.runs, self.path = runs, runs / "studies" / name

    @property
    def registration(self) -> Path:
        """The file of what was registered before the first run."""
        return self.path / "registration.json"

    def outcome(self, cell: Cell, key: str, tries: int) -> Outcome | None:
        """How a run ended; None where it has not, or is to be tried again after an error.

        A run whose folder is gone has not ended, nor has one of other code, settings or data.

        Args:
            cell: the run.
            key: of what it would be now.
            tries: after how many errors it counts as failed.
        """
        record = self._record(cell, key)
        if record is None or (record["status"] == "failed" and record["tries"] < tries):
            return None
        folder = self.runs / record["folder"] if record["folder"] else None
        if record["status"] in ("failed", "refused"):
            return Outcome(record["status"], reason=record["reason"], folder=folder)
        return read_outcome(folder) if folder else None

    def tries(self, cell: Cell, key: str) -> int:
        """How often a run ended with an error."""
        record = self._record(cell, key)
        return record["tries"] if record else 0

    def record(self, cell: Cell, key: str, status: Status, folder: Path | None, reason: str = "") -> None:
        """Note how a run ended."""
        where = os.path.relpath(folder, self.runs) if folder else None
        tries = self.tries(cell, key) + (status == "failed")
        facts: dict[str, Any] = {
            "cell": vars(cell),
            "key": key,
            "status": status,
            "folder": where,
            "reason": reason,
        }
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_json(self._file(cell), facts | {"tries": tries, "time": when, "host": socket.gethostname()})

    def forget_failures(self) -> int:
        """Let runs that ended with an error be tried again; returns how many there were."""
        forgotten = 0
        for file in self.path.glob("cells/*.json"):
            if _read_record(file)["status"] in ("failed", "refused"):
                file.unlink()
                forgotten += 1
        return forgotten

    @contextmanager
    def claimed(self, cell: Cell) -> Iterator[bool]:
        """Hold a run against other workers while it is trained; gives whether that could be.

        The lock is the operating system's: it ends with its process, however that ends.
        """
        self.path.joinpath("cells").mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._file(cell).with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _file(self, cell: Cell) -> Path:
        return self.path / "cells" / f"{cell.name}.json"

    def _record(self, cell: Cell, key: str) -> dict[str, Any] | None:
        try:
            record = _read_record(self._file(cell))
        except FileNotFoundError:
            return None
        return record if record["key"] == key else None


def _read_record(file: Path) -> dict[str, Any]:
    """Raises UserError for a file that is no record, and FileNotFoundError."""
    return read_json(file, Record)


def read_outcome(folder: Path) -> Outcome | None:
    """How the run in a folder ended; None where it has not, or the folder is gone."""
    file = folder / "summary.json"
    return _read_outcome(folder, file.stat().st_mtime_ns) if file.is_file() else None


@cache
def _read_outcome(folder: Path, modified: int) -> Outcome | None:
    from ..evidence.blow_ups import unrecovered  # pandas costs seconds
    from ..evidence.results import RunRecord

    summary = read_summary(folder)
    status = summary.get("status")
    if status == "diverged":
        return Outcome("diverged", reason=f"diverged at step {summary.get('step')}", folder=folder)
    if status != "finished":
        return None
    loss = summary.get("val_loss")
    if loss is None or not math.isfinite(loss):
        return Outcome("failed", reason="it has no finite validation loss", folder=folder)
    return Outcome(
        "finished",
        loss=loss,
        folder=folder,
        spike=unrecovered(RunRecord(folder, summary)) or 0.0,
        floor=(summary.get("floors") or {}).get("unigram", math.inf),
        above_floor=ended_above_floor(loss, summary.get("floors")),
    )
