"""The folder of a study whose runs are made up, without any run folder: what its report is made from."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from eval.studies.budget import with_equal_budgets
from eval.studies.findings.files import write_results
from eval.studies.findings.foretelling import foretell, read_foretold
from eval.studies.findings.reading import StudyRecord, read_study_record
from eval.studies.findings.results import Results
from eval.studies.outcomes import StudyFolder
from eval.studies.plan import Cell
from eval.studies.registration import describe_plan, register

from .studied import Loss, make_files, plan_of, simulate

SIZES = {"small": {"model.n_embd": 16}, "medium": {"model.n_embd": 32, "train.steps": 8}}
GAINS = {"rmsnorm_post": -0.1, "rmsnorm": 0.0, "rmsnorm_parallel": 0.1}
RATES = {"0.5x": 5e-4, "1x": 1e-3, "2x": 2e-3}
STUDY: dict[str, Any] = {
    "variants": [*GAINS],
    "repeat_baseline": True,
    "sizes": SIZES,
    "target": {"model.n_embd": 64, "train.steps": 16},
    "rules": {"gate": 0.05},
    "rates": [*RATES],
    "selection_seeds": [101, 102],
}


def loss_of(cell: Cell) -> float:
    """The best rate of rmsnorm_post is twice the shared one; runs of different seeds differ by 0.002."""
    best = 2e-3 if cell.design == "rmsnorm_post" else 1e-3
    noise = 0.002 * float(np.random.default_rng([*cell.name.encode()]).standard_normal())
    gain = GAINS.get(cell.design, 0.0) + 0.03 * math.log2(RATES[cell.rate] / best) ** 2
    return {"small": 2.9, "medium": 2.4}.get(cell.size, 2.0) + noise + gain


def make_study(folder: Path, loss: Loss = loss_of, ended: int | None = None, **keys: Any) -> StudyRecord:
    """A study of which so many runs have ended, or all."""
    make_files(folder)
    plan = with_equal_budgets(plan_of(folder, **STUDY | keys))
    outcomes = dict([*simulate(plan, loss).items()][:ended])
    there = StudyFolder(folder / "runs", "study")
    data = {size: {"data_fingerprint": "d", "val_fingerprint": "v"} for size in plan.sizes}
    registration = register(there.registration, describe_plan(plan, data), lambda: [], lambda sentence: None)
    results = Results(plan, outcomes, dict.fromkeys(plan.sizes, len(plan.candidates)))
    foretell(results, there)
    write_results(results, read_foretold(results, there), registration, there)
    return read_study_record(there.path)
