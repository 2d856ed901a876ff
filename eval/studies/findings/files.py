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
from ..outcomes import StudyFolder
from ..registration import Registration
from .costs import COSTS, Cost
from .foretelling import Foretold
from .results import Results, Row
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
    write_json(folder.path / "results.json", as_json(results, foretold, registration))
    write_text(folder.path / "runs.csv", _runs(results, folder.runs))
    if results.plan.study.evaluate:
        for size in filter(results.is_settled, results.plan.sizes):
            if card := _scorecard(results, size):
                write_text(folder.path / f"scorecard_{size}.md", card)


def as_json(
    results: Results, foretold: Sequence[Foretold], registration: Registration | None
) -> dict[str, Any]:
    """The results for programs; None for what is not known."""
    plan = results.plan
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
        "looks": dict(results.comparisons),
        "rows": [_row_as_json(row) for row in results.rows],
        "parts": [
            {
                "size": part.size,
                "part": part.name,
                "alone": _effect_as_json(part.alone),
                "to_the_others": _effect_as_json(part.to_the_others),
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
    }
    return _finite(content)


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


def _finite(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _runs(results: Results, runs: Path) -> str:
    """A line for each run that has ended, its scores on tasks too."""
    plan, outcomes = results.plan, results.outcomes
    scores = {cell: _scores(outcome.folder) for cell, outcome in outcomes.items() if outcome.folder}
    tasks = sorted({name for found in scores.values() for name in found})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*RUN_COLUMNS, *tasks])
    for cell, outcome in outcomes.items():
        facts = {
            **vars(cell),
            "learning_rate": plan.trials[cell.size, cell.design, cell.rate].deepspeed.peak_lr,
            "role": "judged" if cell.seed in plan.study.seeds_at_most else "selection",
            "status": outcome.status,
            "reason": outcome.reason,
            "val_loss": outcome.loss if math.isfinite(outcome.loss) else "",
            "folder": outcome.folder.relative_to(runs) if outcome.folder else "",
        }
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
