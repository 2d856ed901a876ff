"""Runs grouped into variants, paired with the baseline's and compared: what scorecard and report show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from .blow_ups import describe_failures
from .differences import compare_rows
from .grouping import choose_yardstick, tabulate_runs
from .metrics import METRICS, VAL_BITS, VAL_LOSS, Metric, other_metrics
from .problems import find_floors, find_problems
from .results import RunRecord
from .verdicts import describe_status, verdict_on, write_headline

ROW_FACTS = [
    "variant", "tokenizer", "precision", "model", "parameters", "flops_per_token", "steps", "tokens",
    "baseline", "given",
]  # fmt: skip
SCORE_COLUMNS = (
    "name", "metric", "value", "seed_sd", "standard_error", "difference", "low", "high", "p_value", "n",
    "seeds", "documents", "interval", "smallest_shown", "is_equivalent",
)  # fmt: skip


@dataclass(frozen=True)
class Scorecard:
    """What the runs say together.

    `runs` has one row per run (its RunRecord in column `record`). `rows` has one per variant, sorted by the
    yardstick, the baseline marked, and marked as `given` those whose weights were not trained here. `scores`
    has one per variant and metric: value, seed_sd (over seeds), standard_error (over items), and where it is
    compared difference, low, high and p_value (which hold for all rows at once), n (pairs, or documents of a
    single pair), the numbers of paired seeds and of documents, what the interval is over ("seeds",
    "documents", "seeds and documents", with items for documents of a task), the smallest true difference that
    this noise would show with a power of 80 %, and whether a difference below 0.003 nats is shown. Accuracies
    are in percent. `floors` are by tokenizer, in nats per token. `yardstick` is the metric that verdicts and
    headline are about: the validation loss in nats per token, or in bits per byte where the runs have several
    tokenizers. `metrics` are the columns that there may be: METRICS, and those of other tasks that a run was
    scored on. `comparisons` is how many every interval holds for.
    """

    baseline: str
    yardstick: Metric
    metrics: tuple[Metric, ...]
    runs: pd.DataFrame
    rows: pd.DataFrame
    scores: pd.DataFrame
    floors: dict[str, dict[str, float]]
    headline: str
    problems: list[str]
    comparisons: int


def build_scorecard(
    records: Sequence[RunRecord], baseline: str | None = None, looks: int | None = None
) -> Scorecard:
    """Group, pair and compare the runs.

    Args:
        records: the runs.
        baseline: names a variant or a row; None takes vanilla, or the first.
        looks: how many comparisons the intervals must hold for, where there were more than these runs make.
    """
    table, baseline = tabulate_runs(records, baseline)
    counted = table[table["counted"]]
    yardstick = choose_yardstick(counted)
    metrics = (*METRICS, *other_metrics(record.scores for record in counted["record"]))
    tasks = [metric for metric in metrics if metric.task]
    comparisons = compare_rows(table, baseline, yardstick, tasks, looks)

    rows, scores = [], []
    for name, group in table.groupby("name", sort=False):
        finished = group[group["counted"]]
        comparison = comparisons.get(str(name))
        first = (finished if len(finished) else group).iloc[0]
        rows.append(
            {
                "name": name,
                **first[ROW_FACTS].to_dict(),
                "seeds": len(finished),
                "runs": len(group),
                "skipped_steps": group["skipped_steps"].sum(),
                "status": describe_status(group),
                "failures": describe_failures(group),
                "other_rates": comparison.other_rates if comparison else "",
                **finished[[VAL_LOSS.name, VAL_BITS.name]].mean().to_dict(),
                "reason": comparison.reason if comparison else "",
            }
        )
        compared = comparison.scores if comparison else {}
        for metric, average in average_scores(finished, metrics).items():
            scores.append({"name": name, "metric": metric, **average, **compared.get(metric, {})})

    row_table = pd.DataFrame(rows).sort_values(yardstick.name, ignore_index=True)
    score_table = pd.DataFrame(scores, columns=list(SCORE_COLUMNS))
    losses = score_table[score_table["metric"] == yardstick.name].set_index("name", drop=False)
    trained = row_table.loc[~row_table["given"], "name"]
    row_table["verdict"] = [verdict_on(row, losses, row_table) for row in row_table.itertuples()]
    return Scorecard(
        baseline=baseline,
        yardstick=yardstick,
        metrics=metrics,
        runs=table,
        rows=row_table.drop(columns="reason"),
        scores=score_table,
        floors=find_floors(table),
        headline=write_headline(row_table, losses, baseline, yardstick.unit.replace("/", " per ")),
        problems=find_problems(table, row_table, losses, baseline),
        comparisons=max(
            looks or 1, sum(bool(comparisons[name].scores) for name in trained if name in comparisons)
        ),
    )


def average_scores(finished: pd.DataFrame, metrics: Sequence[Metric]) -> dict[str, dict[str, float]]:
    """Every metric's mean over a variant's finished runs, its deviation over seeds and its error over items.

    The item error is the mean of the runs' errors: all answer the same items, so more seeds do not shrink it.
    """
    averages = {}
    for metric in metrics:
        scale = 100 if metric.unit == "percent" else 1
        if not metric.task:
            values, error = finished[metric.name].dropna(), math.nan
        else:
            scores = [record.scores.get(metric.task, {}) for record in finished["record"]]
            table = pd.DataFrame(scores, columns=[metric.key, f"{metric.key}_stderr"], dtype=float)
            values, error = table[metric.key].dropna(), table[f"{metric.key}_stderr"].mean()
        if len(values):
            averages[metric.name] = {
                "value": scale * values.mean(),
                "seed_sd": scale * values.std(),
                "standard_error": scale * error,
            }
    return averages
