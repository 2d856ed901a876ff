"""Runs grouped into variants, paired with the baseline's and compared: what scorecard and report show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import pandas as pd

from eval.intervals import Interval, paired_interval
from eval.results import Run
from eval.verdicts import describe_status, find_floors, find_problems, judge, write_headline

DEFAULT_BASELINE = "vanilla"


@dataclass(frozen=True)
class Metric:
    """One column of the scorecard; `task` and `key` say where lm-eval's results hold it."""

    name: str
    title: str
    unit: str
    task: str = ""
    key: str = ""


# Accuracy is lm-eval's `acc` throughout: the one that all tasks have (WinoGrande has no acc_norm).
METRICS = (
    Metric("val_loss", "val loss", "nats/token"),
    Metric("wikitext_ppl", "WikiText-2 ppl", "perplexity", "wikitext", "word_perplexity"),
    Metric("lambada_ppl", "LAMBADA ppl", "perplexity", "lambada_openai", "perplexity"),
    Metric("arc_easy_acc", "ARC-Easy %", "percent", "arc_easy", "acc"),
    Metric("hellaswag_acc", "HellaSwag %", "percent", "hellaswag", "acc"),
    Metric("piqa_acc", "PIQA %", "percent", "piqa", "acc"),
    Metric("winogrande_acc", "WinoGrande %", "percent", "winogrande", "acc"),
    Metric("sample_documents_ppl", "sample docs ppl", "perplexity", "sample_documents", "word_perplexity"),
    Metric("sample_lastword_ppl", "sample last-word ppl", "perplexity", "sample_lastword", "perplexity"),
    Metric("sample_lastword_acc", "sample last-word %", "percent", "sample_lastword", "acc"),
)

# What two runs must share for their difference to be the candidate's doing.
PAIR_KEYS = {
    "init_seed": "init seed",
    "data_seed": "data seed",
    "precision": "precision",
    "model": "model size",
    "tokens": "number of trained tokens",
    "steps": "number of steps",
    "val_fingerprint": "validation set",
}
FACTS = ("variant", *PAIR_KEYS, "parameters", "world_size", "step", "skipped_steps", "status")
SCORE_COLUMNS = (
    "name", "metric", "value", "seed_sd", "standard_error",
    "difference", "low", "high", "p_value", "n", "seeds", "interval",
)  # fmt: skip


@dataclass(frozen=True)
class Scorecard:
    """What the runs say together.

    `runs` has one row a run (its Run in column `run`). `rows` has one a variant, sorted by validation loss,
    the baseline marked. `scores` has one a variant and metric: value, seed_sd (over seeds), standard_error
    (over items), and where it is compared difference, low, high, p_value, n, the number of paired seeds, and
    what the interval is over ("seeds", "documents" or "items"). Losses and floors are in nats a token,
    accuracies in percent.
    """

    baseline: str
    runs: pd.DataFrame
    rows: pd.DataFrame
    scores: pd.DataFrame
    floors: dict[str, float]
    headline: str
    problems: list[str]


def build_scorecard(runs: Sequence[Run], baseline: str | None = None) -> Scorecard:
    """Group, pair and compare the runs; `baseline` names a variant or a row (None: vanilla or the first)."""
    table = tabulate_runs(runs)
    baseline = choose_baseline(table, baseline)
    table["baseline"] = (table["name"] == baseline) | (table["variant"] == baseline)
    counted = table[table["counted"]]

    rows, scores = [], []
    for name, group in table.groupby("name", sort=False):
        finished = group[group["counted"]]
        comparisons: dict[str, dict[str, Any]] = {}
        verdict = "baseline"
        if not group["baseline"].iloc[0]:
            comparisons, verdict = compare(finished, counted[counted["baseline"]], baseline)
        first = (finished if len(finished) else group).iloc[0]
        rows.append(
            {
                "name": name,
                **first[
                    ["variant", "precision", "model", "parameters", "steps", "tokens", "baseline"]
                ].to_dict(),
                "seeds": len(finished),
                "runs": len(group),
                "skipped_steps": group["skipped_steps"].sum(),
                "status": describe_status(group),
                "val_loss": finished["val_loss"].mean(),
                "verdict": verdict,
            }
        )
        for metric, average in average_scores(finished).items():
            scores.append({"name": name, "metric": metric, **average, **comparisons.get(metric, {})})

    row_table = pd.DataFrame(rows).sort_values("val_loss", ignore_index=True)
    score_table = pd.DataFrame(scores, columns=list(SCORE_COLUMNS))
    row_table["verdict"] = judge(row_table, score_table)
    return Scorecard(
        baseline=baseline,
        runs=table,
        rows=row_table,
        scores=score_table,
        floors=find_floors(table),
        headline=write_headline(row_table, score_table, baseline),
        problems=find_problems(table, row_table, score_table, baseline),
    )


def tabulate_runs(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: its facts, the `name` of the row it belongs to, and whether its final loss counts."""
    facts = [{key: run.summary.get(key) for key in FACTS} for run in runs]
    table = pd.DataFrame(facts, columns=list(FACTS)).assign(
        run=list(runs), folder=[str(run.folder) for run in runs]
    )
    table["skipped_steps"] = pd.to_numeric(table["skipped_steps"]).fillna(0).astype(int)
    table["val_loss"] = [run.val_loss for run in runs]
    table["counted"] = (table["status"] == "finished") & table["val_loss"].notna()
    table["name"] = table["variant"]
    for setting in ("precision", "model"):
        table[setting] = table[setting].fillna("unknown")
        if table[setting].nunique() > 1:
            table["name"] += " " + table[setting]
    # The same variant with the same seeds twice is no second seed: such runs get a row each.
    repeated = table["name"].isin(table.loc[table.duplicated(["name", "init_seed", "data_seed"]), "name"])
    table.loc[repeated, "name"] += " [" + table["folder"] + "]"
    return table


def choose_baseline(table: pd.DataFrame, wanted: str | None) -> str:
    """The wanted variant or row; by default `vanilla` if a run has it, else the first run's variant."""
    names = list(dict.fromkeys([*table["variant"], *table["name"]]))
    if wanted is None:
        return DEFAULT_BASELINE if DEFAULT_BASELINE in names else names[0]
    if wanted not in names:
        near = get_close_matches(wanted, names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"no run is of the baseline {wanted!r}{hint}; the runs given are of {', '.join(names)}."
        )
    return wanted


def average_scores(finished: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Every metric's mean over a variant's finished runs, its deviation over seeds and its error over items.

    The item error is the mean of the runs' errors: all answer the same items, so more seeds do not shrink it.
    """
    averages = {}
    for metric in METRICS:
        scale = 100 if metric.unit == "percent" else 1
        values, error = finished["val_loss"], math.nan
        if metric.task:
            of_task = pd.DataFrame([run.scores.get(metric.task, {}) for run in finished["run"]], dtype=float)
            of_task = of_task.reindex(columns=[metric.key, f"{metric.key}_stderr"])
            values, error = of_task[metric.key].dropna(), of_task[f"{metric.key}_stderr"].mean()
        if len(values):
            averages[metric.name] = {
                "value": scale * values.mean(),
                "seed_sd": scale * values.std(),
                "standard_error": scale * error,
            }
    return averages


def compare(
    candidate: pd.DataFrame, baseline: pd.DataFrame, name: str
) -> tuple[dict[str, dict[str, Any]], str]:
    """Differences of the candidate's runs to their partners, {metric: columns of `scores`}, or why none."""
    if candidate.empty:
        return {}, "not finished"
    if baseline.empty:
        return {}, f"no finished {name} run to compare with"
    keys = list(PAIR_KEYS)
    pairs = candidate.merge(baseline.drop_duplicates(keys), on=keys, suffixes=("", "_baseline"))
    if pairs.empty:
        other = [title for key, title in PAIR_KEYS.items() if set(candidate[key]).isdisjoint(baseline[key])]
        return {}, f"not comparable, no {name} run has the same {' and '.join(other or PAIR_KEYS.values())}"

    of_loss = pairs["val_loss"] - pairs["val_loss_baseline"]
    comparisons = {"val_loss": {"difference": of_loss.mean(), "seeds": len(pairs)}}
    if len(pairs) >= 2:
        comparisons["val_loss"] |= {**vars(paired_interval(of_loss)), "interval": "seeds"}
    elif over_documents := compare_documents(pairs["run"].iloc[0], pairs["run_baseline"].iloc[0]):
        comparisons["val_loss"] |= {**vars(over_documents), "interval": "documents"}
    for metric in METRICS:
        if metric.unit == "percent" and (over_items := compare_items(pairs, metric)):
            comparisons[metric.name] = {**vars(over_items), "interval": "items", "seeds": len(pairs)}
    return comparisons, ""


def compare_documents(candidate: Run, baseline: Run) -> Interval | None:
    """Difference in nats a token over the documents of two runs; None where they were not kept alike."""
    ours, theirs = candidate.documents, baseline.documents
    if ours is None or theirs is None or len(ours) < 2:
        return None
    if not ours[["document", "tokens"]].equals(theirs[["document", "tokens"]]):
        return None
    return paired_interval(ours["loss"] - theirs["loss"], ours["tokens"])


def compare_items(pairs: pd.DataFrame, metric: Metric) -> Interval | None:
    """Difference in percentage points over the items that all runs answered, averaged over the pairs."""
    differences = []
    for ours, theirs in zip(pairs["run"], pairs["run_baseline"], strict=True):
        if ours.items is None or theirs.items is None:
            return None
        differences.append(_item_values(ours, metric) - _item_values(theirs, metric))
    points = 100 * pd.concat(differences, axis=1).mean(axis=1, skipna=False).dropna()
    # Items all answered alike have no spread to put an interval on, and [0, 0] would claim certainty.
    return paired_interval(points) if len(points) >= 2 and points.any() else None


def _item_values(run: Run, metric: Metric) -> pd.Series:
    assert run.items is not None
    of_metric = (run.items["task"] == metric.task) & (run.items["metric"] == metric.key)
    return run.items[of_metric].set_index("doc_id")["value"].astype(float)
