"""A study's results as JSON, and its runs as a table, in the study's folder."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.files import write_json, write_text

from ...evidence.comparison import build_scorecard
from ...evidence.results import RunRecord, read_runs
from ...evidence.tables import to_markdown
from ...statistics.effect import Effect
from ..budget import flops_of_run
from ..outcomes import Outcome, StudyFolder
from ..plan import Cell
from ..queue import best_rate, next_cells
from ..registration import Registration
from .costs import COSTS, Cost, wall_time_s
from .foretelling import Foretold
from .results import Results, Row
from .tables import rate_notes
from .verdicts import Verdict, overall

RUN_COLUMNS = (
    "size", "design", "rate", "learning_rate", "seed", "role", "status", "reason", "val_loss", "folder",
)  # fmt: skip
"""Of runs.csv, before the scores on tasks."""


def write_results(
    results: Results,
    foretold: Sequence[Foretold],
    registration: Registration | None,
    folder: StudyFolder,
) -> None:
    """`results.json`, `runs.csv` and, where runs are evaluated, a scorecard of each size whose runs have
    ended, in the study's folder."""
    write_json(folder.path / "results.json", as_json(results, foretold, registration, folder.runs))
    write_text(folder.path / "runs.csv", _runs(results, folder.runs))
    if results.plan.study.evaluate:
        for size in filter(results.is_settled, results.plan.sizes):
            if card := _scorecard(results, size):
                write_text(folder.path / f"scorecard_{size}.md", card)


def as_json(
    results: Results, foretold: Sequence[Foretold], registration: Registration | None, runs: Path
) -> dict[str, Any]:
    """The results for programs, from which `read_study_record` makes a report; None for what is not known.

    Args:
        results: so far.
        foretold: what was written down of sizes that were not trained yet.
        registration: of the study.
        runs: the folder of all run folders, which those of the study are named below.
    """
    plan, level = results.plan, results.plan.study.rules.confidence
    to_come = next_cells(plan, results.outcomes, results.decided)
    content = {
        "study": plan.study.name,
        "done": results.is_done,
        "baseline": plan.baseline,
        "registration": registration
        and {
            "time": registration.time,
            "sha256": registration.sha256,
            "is_intact": registration.is_intact,
            "there_before": [*registration.there_before],
            "departures": [dict(one) for one in registration.departures],
        },
        "rules": vars(plan.study.rules),
        "seeds": [*plan.study.seeds],
        "selection_seeds": [*plan.study.selection_seeds],
        "looks": dict(results.comparisons),
        "sizes": [_size_as_json(results, size) for size in plan.sizes],
        "target_flops": plan.target and flops_of_run(plan.target),
        "rows": [_row_as_json(row) for row in results.rows],
        "parts": [
            {
                "size": part.size,
                "part": part.name,
                "alone": _with_interval(part.alone, level),
                "to_the_others": _with_interval(part.to_the_others, level),
            }
            for part in results.parts()
        ],
        "projections": [
            {
                "size": one.size,
                "design": one.design,
                "sizes": [*one.sizes],
                "time": one.time,
                "foretold": vars(one.foretold),
                "came": one.came and vars(one.came),
                "as_foretold": one.foretold.holds(one.came) if one.came else None,
            }
            for one in foretold
        ],
        "runs": [
            _run_as_json(results, cell, outcome, runs)
            for cell, outcome in [*results.outcomes.items(), *((cell, None) for cell in to_come)]
        ],
    }
    return _finite(content)


def _size_as_json(results: Results, size: str) -> dict[str, Any]:
    plan = results.plan
    return {
        "size": size,
        "is_settled": results.is_settled(size),
        "tokens": plan.trials[size, plan.baseline, plan.shared[size]].tokens,
        "flops": results.flops(size),
        "shared_rate": plan.shared[size],
        "rates": {
            design: {
                rate: plan.trials[size, design, rate].deepspeed.peak_lr for rate in plan.rates(size, design)
            }
            for design in plan.arms(size)
        },
        "best_rates": {design: best_rate(plan, results.outcomes, size, design) for design in plan.arms(size)},
        "notes": [*rate_notes(results, size)],
    }


def _run_as_json(results: Results, cell: Cell, outcome: Outcome | None, runs: Path) -> dict[str, Any]:
    """A run that has ended, or one that comes, which has no status."""
    plan = results.plan
    return {
        **vars(cell),
        "learning_rate": plan.trials[cell.size, cell.design, cell.rate].deepspeed.peak_lr,
        "role": "judged" if cell.seed in plan.study.seeds_at_most else "selection",
        "status": outcome and outcome.status,
        "reason": outcome.reason if outcome else "",
        "val_loss": outcome and outcome.loss,
        "folder": str(outcome.folder.relative_to(runs)) if outcome and outcome.folder else None,
        "wall_time_s": wall_time_s(outcome) if outcome else None,
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    return {
        "size": row.size,
        "design": row.design,
        "state": row.state,
        "note": row.note,
        "word": overall(row.verdicts) if row.verdicts else None,
        "verdicts": [_verdict_as_json(verdict) for verdict in row.verdicts],
        "cost": row.cost and {name: _cost(row.cost, name) for name in COSTS},
        "over_budget": row.cost.over_budget if row.cost else [],
        "speed_up": row.speed_up and vars(row.speed_up),
        "passes_gate": row.gate,
    }


def _verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "at": verdict.at,
        "rate": verdict.rate,
        "baseline": verdict.baseline,
        "baseline_rate": verdict.baseline_rate,
        "word": verdict.word,
        **_effect_as_json(verdict.effect),
        "p_value": verdict.p_value,
        "low": verdict.low,
        "high": verdict.high,
        "could_show": verdict.could_show,
        "planned": verdict.planned,
        "failed": {str(seed): reason for seed, reason in verdict.failed.items()},
        "baseline_failed": {str(seed): reason for seed, reason in verdict.baseline_failed.items()},
        "failure_rate": [*verdict.failure_interval],
    }


def _cost(cost: Cost, name: str) -> dict[str, float | None]:
    return {"design": cost.mine[name], "baseline": cost.its[name], "ratio": cost.ratio(name)}


def _effect_as_json(effect: Effect | None) -> dict[str, Any]:
    if effect is None:
        return dict.fromkeys(("difference", "p_value", "seeds", "documents"))
    return {
        "difference": effect.estimate,
        "p_value": effect.p_value,
        "seeds": effect.seeds,
        "documents": effect.documents,
    }


def _with_interval(effect: Effect | None, level: float) -> dict[str, Any]:
    low, high = effect.interval(level) if effect else (None, None)
    return {**_effect_as_json(effect), "low": low, "high": high}


def _finite(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _runs(results: Results, runs: Path) -> str:
    """A line for each run that has ended, its scores on tasks too."""
    outcomes = results.outcomes
    scores = {cell: _scores(outcome.folder) for cell, outcome in outcomes.items() if outcome.folder}
    tasks = sorted({name for found in scores.values() for name in found})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*RUN_COLUMNS, *tasks])
    for cell, outcome in outcomes.items():
        facts = _run_as_json(results, cell, outcome, runs)
        facts["val_loss"] = outcome.loss if math.isfinite(outcome.loss) else ""
        of_tasks = [scores.get(cell, {}).get(task, "") for task in tasks]
        writer.writerow([*(facts[name] for name in RUN_COLUMNS), *of_tasks])
    return text.getvalue()


def _scorecard(results: Results, size: str) -> str | None:
    """The judged runs of a size at the shared rate, with their scores on tasks; None without a comparison."""
    plan = results.plan
    folders = [
        outcome.folder
        for cell, outcome in results.outcomes.items()
        if (cell.size, cell.rate) == (size, plan.shared[size])
        and cell.seed in plan.study.seeds_at_most
        and outcome.folder
        and (outcome.folder / "summary.json").is_file()
    ]
    baseline = plan.trials[size, plan.baseline, plan.shared[size]].recipe.variant
    if not any(row.verdicts for row in results.rows if row.size == size):
        return None
    return to_markdown(build_scorecard(read_runs(folders), baseline, results.comparisons[size]))


def _scores(folder: Path) -> dict[str, float]:
    """A run's scores on tasks, `task/metric`; none where it was not evaluated."""
    return {
        f"{task}/{metric}": value
        for task, metrics in RunRecord(folder, {}).scores.items()
        for metric, value in metrics.items()
        if not metric.endswith("_stderr")
    }
