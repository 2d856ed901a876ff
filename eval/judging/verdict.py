"""From finished runs to a verdict: what the JSON of scripts/judge.py holds beside how it ended."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..evidence.comparison import Scorecard, build_scorecard
from ..evidence.metrics import METRICS, VAL_LOSS, Metric
from ..evidence.results import RunRecord, read_run
from ..evidence.tables import format_value
from ..evidence.verdicts import describe_sample, format_interval

WORDS = {
    "better": "better",
    "worse": "worse",
    "equivalent": "equivalent",
    "not shown": "not shown",
    "fails": "fails",
    "lower": "lower",
    "higher": "higher",
    "no clear difference": "no clear difference",
    "one seed": "not measured",
}
"""How a row's verdict in the scorecard begins, and the word for it. Of one seed are the last four."""
COSTS = {
    "parameters": ("parameters",),
    "flops_per_token": ("flops_per_token",),
    "tokens_per_s": ("throughput", "tokens_per_s"),
}
"""Where summary.json has them."""


def compare_runs(pairs: Sequence[tuple[int, Path, Path]], looks: int = 1) -> dict[str, Any]:
    """The verdict on finished runs, as keys of the JSON: `verdict`, `difference`, `seeds`, `evaluation`,
    `cost` and `problems`.

    Args:
        pairs: of each seed the candidate's folder and the baseline's.
        looks: how many there were so far, this one included: the interval holds for all of them together.
    """
    ours = [read_run(folder) for _, folder, _ in pairs]
    theirs = [read_run(folder) for _, _, folder in pairs]
    baseline = theirs[0].summary["variant"]
    card = build_scorecard([*theirs, *ours], baseline, looks)
    rows = card.rows[~card.rows["baseline"]]
    if len(rows) != 1:
        raise ValueError(f"the candidate's runs are not of one kind: {', '.join(rows['name'])}")
    row = rows.iloc[0]
    scores = card.scores[card.scores["name"] == row["name"]].set_index("metric", drop=False)
    loss = scores.loc[card.yardstick.name]
    word = word_for(row["verdict"])
    sentence = f"{ours[0].summary['variant']} against {baseline}: {row['verdict']}"
    difference = None
    if not math.isnan(loss["difference"]):
        difference = {
            "mean": _number(loss["difference"]),
            "low": _number(loss["low"]),
            "high": _number(loss["high"]),
            "p_value": _number(loss["p_value"]),
            "unit": card.yardstick.unit,
            "could_have_shown": _number(loss["smallest_shown"]),
            "interval_over": None if math.isnan(loss["low"]) else describe_sample(loss),
        }
        interval = f", 95 % interval {format_interval(loss, 4)}" if difference["interval_over"] else ""
        over = f" over {difference['interval_over']}" if interval else ""
        sentence += (
            f" ({loss['difference']:+.4f} {card.yardstick.unit.replace('/', ' per ')}{interval}{over})"
        )
    return {
        "verdict": {"word": word, "sentence": sentence},
        "difference": difference,
        "seeds": [
            _pair(seed, mine, its) for (seed, _, _), mine, its in zip(pairs, ours, theirs, strict=True)
        ],
        "evaluation": _evaluation(card, row["name"], baseline),
        "cost": _cost(ours, theirs),
        "problems": card.problems,
    }


def word_for(verdict: str) -> str:
    """The word for a row's verdict in the scorecard."""
    if "with another" in verdict:  # its rates, which may be the candidate's own
        return "other rates"
    return next((word for start, word in WORDS.items() if verdict.startswith(start)), "not comparable")


def _pair(seed: int, ours: RunRecord, theirs: RunRecord) -> dict[str, Any]:
    return {
        "seed": seed,
        "candidate": ours.val_loss,
        "baseline": theirs.val_loss,
        "difference": ours.val_loss - theirs.val_loss,
        "candidate_run": str(ours.folder),
        "baseline_run": str(theirs.folder),
    }


def _evaluation(card: Scorecard, name: str, baseline: str) -> dict[str, dict[str, Any]]:
    """Each metric but the yardstick: both means, and the difference with its interval where there is one."""
    table: dict[str, dict[str, Any]] = {}
    its_names = set(card.rows.loc[card.rows["baseline"], "name"])
    for metric in card.metrics:
        scores = card.scores[card.scores["metric"] == metric.name]
        mine = scores[scores["name"] == name]
        its = scores[scores["name"].isin(its_names)]
        if metric is VAL_LOSS or mine.empty or its.empty:
            continue
        score = mine.iloc[0]
        table[metric.name] = {
            "candidate": _number(score["value"]),
            "baseline": _number(its["value"].mean()),
            "unit": metric.unit,
            **{key: _number(score[key]) for key in ("difference", "low", "high")},
        }
    return table


def _cost(ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> dict[str, Any]:
    """Means over the runs, and the candidate's over the baseline's; None for what a run does not say."""
    cost = {}
    for key, place in COSTS.items():
        mine, its = (_mean(_at(record.summary, place) for record in records) for records in (ours, theirs))
        cost[key] = {"candidate": mine, "baseline": its, "ratio": mine / its if mine and its else None}
    return cost


def _at(summary: Any, place: Sequence[str]) -> Any:
    for key in place:
        summary = summary.get(key) if isinstance(summary, dict) else None
    return summary


def _mean(values: Iterable[Any]) -> float | None:
    known = list(values)
    return fmean(known) if all(isinstance(value, int | float) for value in known) else None


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def describe(content: Mapping[str, Any]) -> str:
    """A verdict for a terminal: the sentence, each seed, the scores, the cost, the problems."""
    lines = [content["verdict"]["sentence"], ""]
    for pair in content["seeds"]:
        lines.append(
            f"seed {pair['seed']}: {pair['candidate']:.4f} against {pair['baseline']:.4f} nats per token "
            f"({pair['difference']:+.4f})"
        )
    metrics = {metric.name: metric for metric in METRICS}
    for name, score in content["evaluation"].items():
        metric = metrics.get(name) or Metric(name, name.replace("_", " "), score["unit"])
        mine, its = (format_value(score[key], metric) for key in ("candidate", "baseline"))
        lines.append(f"{metric.title}: {mine} against {its} {metric.unit}")
    for name, cost in content["cost"].items():
        if cost["ratio"] is not None:
            lines.append(f"{name.replace('_', ' ')}: {cost['ratio']:.3f} times the baseline's")
    return "\n".join([*lines, *(f"note: {problem}" for problem in content["problems"])])
