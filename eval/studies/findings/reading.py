"""A study as its folder tells it: no file of the study, no data and no checkpoint has to be at hand."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.shapes import misshapen
from training.run.reader import read_json

from ...statistics.effect import Effect
from ..designs import AGAIN
from ..plan import Cell
from ..registration import Registration, read_registration
from ..study import Rules
from .costs import COSTS, Cost
from .foretelling import Foretold
from .projection import Estimate
from .results import Row
from .shapes import ResultsFile, contradiction
from .verdicts import Verdict


@dataclass(frozen=True)
class StudyRun:
    """A run that has ended, or that is to come.

    Attributes:
        role: "judged", or "selection" where it chooses a rate.
        status: how it ended; None where it has not.
        reason: why it has no loss.
        val_loss: nats per token; NaN where there is none.
        folder: of the run; None where there is none.
        wall_time_s: seconds; None where it is not known.
    """

    size: str
    design: str
    rate: str
    seed: int
    learning_rate: float
    role: str
    status: str | None
    reason: str
    val_loss: float
    folder: Path | None
    wall_time_s: float | None

    @property
    def is_finished(self) -> bool:
        """Whether it has a loss."""
        return self.status == "finished" and math.isfinite(self.val_loss)

    @property
    def cell(self) -> Cell:
        """The run in the plan."""
        return Cell(self.size, self.design, self.rate, self.seed)


@dataclass(frozen=True)
class StudySize:
    """A size of a study.

    Attributes:
        is_settled: whether nothing is open there.
        tokens: that a run trains on.
        flops: of a run of the baseline.
        shared_rate: its label.
        rates: by design and label, the peak learning rate.
        best_rates: by design, the label; None while it is not known.
        notes: what has to be known of the rates.
    """

    size: str
    is_settled: bool
    tokens: int
    flops: float
    shared_rate: str
    rates: Mapping[str, Mapping[str, float]]
    best_rates: Mapping[str, str | None]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PartRecord:
    """What a part of a composite adds at a size, in nats per token; None where it is not known."""

    size: str
    part: str
    alone: Estimate | None
    to_the_others: Estimate | None


@dataclass(frozen=True)
class StudyRecord:
    """What a study's folder holds.

    Attributes:
        folder: of the study.
        name: of the study.
        baseline: its name.
        is_done: whether nothing is open.
        rules: by which it decides.
        seeds: that are judged; a sequential study may have added more.
        selection_seeds: that choose rates.
        comparisons: by size, how many looks the intervals are corrected for.
        sizes: the smallest first.
        target_flops: of a run of the size that is foretold and not trained; None without one.
        rows: of each size and design. Of their differences the variance is not kept, the interval is.
        parts: of a composite.
        foretold: what was written down of sizes before they were trained.
        runs: that have ended, then those known to come.
        registration: of the study.
    """

    folder: Path
    name: str
    baseline: str
    is_done: bool
    rules: Rules
    seeds: tuple[int, ...]
    selection_seeds: tuple[int, ...]
    comparisons: Mapping[str, int]
    sizes: tuple[StudySize, ...]
    target_flops: float | None
    rows: tuple[Row, ...]
    parts: tuple[PartRecord, ...]
    foretold: tuple[Foretold, ...]
    runs: tuple[StudyRun, ...]
    registration: Registration

    @property
    def designs(self) -> tuple[str, ...]:
        """All that are judged, the baseline again among them."""
        return tuple(dict.fromkeys(row.design for row in self.rows))

    def is_noise(self, design: str) -> bool:
        """Whether it is the baseline again, from other first weights: its difference is noise."""
        return design == self.baseline + AGAIN

    def rows_of(self, size: str) -> list[Row]:
        """Each design at a size."""
        return [row for row in self.rows if row.size == size]

    def row(self, size: str, design: str) -> Row:
        """A design at a size."""
        return next(row for row in self.rows if (row.size, row.design) == (size, design))

    def folder_of(self, run: StudyRun) -> Path | None:
        """Of a run that has ended, or where a worker trains it now; None where nothing of it is there."""
        if run.folder is not None:
            return run.folder if (run.folder / "summary.json").is_file() else None
        runs, name = self.folder.parent.parent, f"{self.name}_{run.cell.name}"
        begun = [
            runs / name,
            *(one for one in runs.glob(f"{name}_*") if one.name[len(name) + 1 :].isdecimal()),
        ]
        return next((one for one in reversed(begun) if (one / "summary.json").is_file()), None)

    @property
    def largest(self) -> StudySize | None:
        """The largest size at which anything was judged, one where nothing is open before others."""
        judged = [size for size in self.sizes if any(row.verdicts for row in self.rows_of(size.size))]
        return next(reversed([size for size in judged if size.is_settled] or judged), None)


def read_study_record(folder: Path) -> StudyRecord:
    """The study in `RUNS/studies/NAME`. Raises UserError where its files do not say what they should."""
    registration = read_registration(folder / "registration.json")
    file = folder / "results.json"
    if not file.is_file():
        raise UserError(
            f"{folder} has no results.json yet: python scripts/study.py writes it before the first run"
        )
    content: Any = read_json(file)
    if problem := misshapen(content, ResultsFile) or contradiction(content):
        raise UserError(
            f"{file}: {problem}: python scripts/study.py STUDY.yaml writes it anew, and trains nothing that "
            "is there"
        )
    try:
        return _record(folder, content, registration)
    except ValueError as error:  # a rule out of its range, a seed that is no number
        raise UserError(f"{file}: {error}") from None


def _record(folder: Path, content: Mapping[str, Any], registration: Registration) -> StudyRecord:
    runs = folder.parent.parent
    return StudyRecord(
        folder=folder,
        name=content["study"],
        baseline=content["baseline"],
        is_done=content["done"],
        rules=Rules(**content["rules"]),
        seeds=tuple(content["seeds"]),
        selection_seeds=tuple(content["selection_seeds"]),
        comparisons=content["looks"],
        sizes=tuple(StudySize(**one | {"notes": tuple(one["notes"])}) for one in content["sizes"]),
        target_flops=content["target_flops"],
        rows=tuple(map(_row, content["rows"])),
        parts=tuple(
            PartRecord(one["size"], one["part"], _interval(one["alone"]), _interval(one["to_the_others"]))
            for one in content["parts"]
        ),
        foretold=tuple(map(_foretold, content["projections"])),
        runs=tuple(_run(one, runs) for one in content["runs"]),
        registration=registration,
    )


def _row(content: Mapping[str, Any]) -> Row:
    size, design, cost = content["size"], content["design"], content["cost"]
    return Row(
        size,
        design,
        content["state"],
        content["note"],
        tuple(_verdict(size, design, one) for one in content["verdicts"]),
        cost
        and Cost(
            {name: cost[name]["design"] for name in COSTS},
            {name: cost[name]["baseline"] for name in COSTS},
            (),
        ),
        _estimate(content["speed_up"]),
        content["passes_gate"],
    )


def _verdict(size: str, design: str, content: Mapping[str, Any]) -> Verdict:
    effect = None
    if content["difference"] is not None:
        effect = Effect(content["difference"], (), content["seeds"], content["documents"])
    return Verdict(
        size,
        design,
        content["at"],
        content["rate"],
        content["baseline"],
        content["baseline_rate"],
        content["word"],
        content["planned"],
        {int(seed): reason for seed, reason in content["failed"].items()},
        {int(seed): reason for seed, reason in content["baseline_failed"].items()},
        effect,
        _or(content["low"], math.nan),
        _or(content["high"], math.nan),
        content["p_value"],
        _or(content["could_show"], math.inf),
    )


def _foretold(content: Mapping[str, Any]) -> Foretold:
    foretold = _estimate(content["foretold"])
    assert foretold is not None
    came = _estimate(content["came"])
    return Foretold(
        content["design"], content["size"], foretold, tuple(content["sizes"]), content["time"], came
    )


def _run(content: Mapping[str, Any], runs: Path) -> StudyRun:
    folder = content["folder"]
    changed = {"val_loss": _or(content["val_loss"], math.nan), "folder": runs / folder if folder else None}
    return StudyRun(**{**content, **changed})


def _estimate(content: Mapping[str, Any] | None) -> Estimate | None:
    if content is None:
        return None
    return Estimate(*(_or(content[key], math.nan) for key in ("value", "low", "high")))


def _interval(content: Mapping[str, Any]) -> Estimate | None:
    if content["difference"] is None:
        return None
    return _estimate({"value": content["difference"], "low": content["low"], "high": content["high"]})


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
