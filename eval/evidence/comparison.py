"""Runs grouped into variants, paired with the baseline's and compared: what scorecard and report show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from model.errors import UserError, did_you_mean

from .intervals import Interval, paired_interval
from .metrics import TASK_METRICS, Metric, other_metrics
from .results import GIVEN_WEIGHTS, RunRecord
from .verdicts import describe_status, find_floors, find_problems, judge, write_headline

DEFAULT_BASELINE = "vanilla"


VAL_LOSS = Metric("val_loss", "val loss", "nats/token")
VAL_BITS = Metric("val_bits_per_byte", "val bits/byte", "bits/byte")
METRICS = (VAL_LOSS, VAL_BITS, *TASK_METRICS)

# What two runs must share for their difference to be the candidate's doing.
PAIR_KEYS = {
    "init_seed": "init seed",
    "data_seed": "data seed",
    "precision": "precision",
    "model": "model size",
    "tokens": "number of trained tokens",
    "steps": "number of steps",
    "source_fingerprint": "training data",
    "backbone": "fixed parts of the model",
    "init_fingerprint": "initial weights",
}
SAME_TOKENS = {"val_fingerprint": "validation set"}  # for losses in nats per token
SAME_TEXT = {"val_text": "validation text"}  # for losses in bits per byte
# What may be a candidate's own, and so is said where it differs, not refused.
RATE_SETTINGS = ("learning_rate", "weight_decay", "gradient_clipping", "schedule")
ROW_FACTS = [
    "variant", "tokenizer", "precision", "model", "parameters", "steps", "tokens", "baseline", "given",
]  # fmt: skip
FACTS = (
    "variant", "design_fingerprint", *PAIR_KEYS, "packing", "val_fingerprint", "val_text_fingerprint",
    "parameters", "world_size", "step", "skipped_steps", "status", *RATE_SETTINGS,
)  # fmt: skip
SCORE_COLUMNS = (
    "name", "metric", "value", "seed_sd", "standard_error",
    "difference", "low", "high", "p_value", "n", "seeds", "interval",
)  # fmt: skip


@dataclass(frozen=True)
class Scorecard:
    """What the runs say together.

    `runs` has one row per run (its RunRecord in column `record`). `rows` has one per variant, sorted by the
    yardstick, the baseline marked, and marked as `given` those whose weights were not trained here. `scores`
    has one per variant and metric: value, seed_sd (over seeds), standard_error (over items), and where it is
    compared difference, low, high, p_value, n, the number of paired seeds, and what the interval is over
    ("seeds", "documents" or "items"). Accuracies are in percent. `floors` are by tokenizer, in nats per
    token. `yardstick` is the metric that verdicts and headline are about: the validation loss in nats per
    token, or in bits per byte where the runs have several tokenizers. `metrics` are the columns that there
    may be: METRICS, and those of other tasks that a run was scored on.
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


def build_scorecard(records: Sequence[RunRecord], baseline: str | None = None) -> Scorecard:
    """Group, pair and compare the runs; `baseline` names a variant or a row (None: vanilla or the first)."""
    table = tabulate_runs(records)
    baseline = choose_baseline(table, baseline)
    table["baseline"] = (table["name"] == baseline) | (table["variant"] == baseline)
    counted = table[table["counted"]]
    yardstick = choose_yardstick(counted)
    metrics = (*METRICS, *other_metrics(record.scores for record in counted["record"]))

    rows, scores = [], []
    for name, group in table.groupby("name", sort=False):
        finished = group[group["counted"]]
        comparisons: dict[str, dict[str, Any]] = {}
        verdict = "baseline"
        if not group["baseline"].iloc[0]:
            comparisons, verdict = compare(
                finished, counted[counted["baseline"]], baseline, yardstick, metrics
            )
        first = (finished if len(finished) else group).iloc[0]
        rows.append(
            {
                "name": name,
                **first[ROW_FACTS].to_dict(),
                "seeds": len(finished),
                "runs": len(group),
                "skipped_steps": group["skipped_steps"].sum(),
                "status": describe_status(group),
                **finished[[VAL_LOSS.name, VAL_BITS.name]].mean().to_dict(),
                "verdict": verdict,
            }
        )
        for metric, average in average_scores(finished, metrics).items():
            scores.append({"name": name, "metric": metric, **average, **comparisons.get(metric, {})})

    row_table = pd.DataFrame(rows).sort_values(yardstick.name, ignore_index=True)
    score_table = pd.DataFrame(scores, columns=list(SCORE_COLUMNS))
    losses = score_table[score_table["metric"] == yardstick.name].set_index("name", drop=False)
    row_table["verdict"] = judge(row_table, losses)
    return Scorecard(
        baseline=baseline,
        yardstick=yardstick,
        metrics=metrics,
        runs=table,
        rows=row_table,
        scores=score_table,
        floors=find_floors(table),
        headline=write_headline(row_table, losses, baseline, yardstick.unit.replace("/", " per ")),
        problems=find_problems(table, row_table, losses, baseline),
    )


def tabulate_runs(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row per run: its facts, the `name` of the row it belongs to, and whether its final loss counts."""
    facts = [record.summary | record.settings for record in records]
    table = pd.DataFrame([{key: of_run.get(key) for key in FACTS} for of_run in facts]).assign(
        record=list(records), folder=[str(record.folder) for record in records]
    )
    table["skipped_steps"] = pd.to_numeric(table["skipped_steps"]).fillna(0).astype(int)
    table[VAL_LOSS.name] = [record.val_loss for record in records]
    table[VAL_BITS.name] = [record.val_bits_per_byte for record in records]
    table["tokenizer"] = [record.tokenizer for record in records]
    # Tokens decide the text: an older run gets the text's fingerprint from a newer one with its tokens.
    text = table.groupby("val_fingerprint")["val_text_fingerprint"].transform("first")
    table["val_text"] = text.fillna(table["val_fingerprint"])
    table["given"] = table["status"] == GIVEN_WEIGHTS
    table["counted"] = ((table["status"] == "finished") | table["given"]) & table["val_loss"].notna()
    for seed in ("init_seed", "data_seed"):  # as they are: given weights have none, which makes floats of all
        table[seed] = pd.Series([record.summary.get(seed) for record in records], dtype=object)
    table["variant"] += (" of " + table["folder"]).where(table["given"], "")
    table["name"] = table["variant"]
    # A candidate file that was edited between two runs is another design of the same name.
    code = table["design_fingerprint"].fillna("")
    edited = code.groupby(table["name"]).transform("nunique") > 1
    table.loc[edited, "name"] += " " + code.str[:8]
    table["packing"] = table["packing"].fillna("concat")
    trained = ~table["given"]
    for setting in ("precision", "model", "tokenizer", "packing", "backbone"):
        table.loc[trained, setting] = table.loc[trained, setting].fillna("unknown")
        if table.loc[trained, setting].nunique() > 1:
            table.loc[trained, "name"] += " " + table[setting]
    table["init_fingerprint"] = table["init_fingerprint"].fillna("drawn")
    if table.loc[trained, "init_fingerprint"].nunique() > 1:
        starts = table["init_fingerprint"].map(lambda start: "" if start == "drawn" else f" from {start[:8]}")
        table.loc[trained, "name"] += starts
    for setting in RATE_SETTINGS:
        text = table[setting].map("{}".format).where(table[setting].notna(), "unknown")
        several = text.groupby(table["name"]).transform("nunique") > 1
        table.loc[several, "name"] += f" {setting.replace('_', ' ')} " + text
    # The same variant with the same seeds twice is no second seed: such runs get a row each.
    repeated = table["name"].isin(table.loc[table.duplicated(["name", "init_seed", "data_seed"]), "name"])
    table.loc[repeated, "name"] += " [" + table["folder"] + "]"
    return table


def choose_baseline(table: pd.DataFrame, wanted: str | None) -> str:
    """The wanted variant or row; by default `vanilla` if a run has it, else the first run's variant.

    Runs of one variant differ in something else: then it is the first run's row.
    """
    names = list(dict.fromkeys([*table["variant"], *table["name"]]))
    if wanted is None and table["variant"].nunique() == 1:
        return table["name"].iloc[0]
    if wanted is None:
        return DEFAULT_BASELINE if DEFAULT_BASELINE in names else names[0]
    if wanted not in names:
        raise UserError(
            f"no run is of the baseline {wanted!r}{did_you_mean(wanted, names)}; the runs given are of "
            f"{', '.join(names)}"
        )
    return wanted


def choose_yardstick(counted: pd.DataFrame) -> Metric:
    """Nats per token; bits per byte where the runs have several tokenizers and all know their bits."""
    several = counted["tokenizer"].nunique() > 1
    return VAL_BITS if several and counted[VAL_BITS.name].notna().all() else VAL_LOSS


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


def compare(
    candidate: pd.DataFrame,
    baseline: pd.DataFrame,
    name: str,
    yardstick: Metric,
    metrics: Sequence[Metric],
) -> tuple[dict[str, dict[str, Any]], str]:
    """Differences of the candidate's runs to their partners, {metric: columns of `scores`}, or why none."""
    if candidate.empty:
        return {}, "not finished"
    if baseline.empty:
        return {}, f"no finished {name} run to compare with"
    keys, loss = SAME_TOKENS, VAL_LOSS
    if yardstick is VAL_BITS and set(candidate["tokenizer"]).isdisjoint(baseline["tokenizer"]):
        keys, loss = SAME_TEXT, VAL_BITS
    pairs, keys = pair_runs(candidate, baseline, keys)
    if pairs.empty:
        other = [title for key, title in keys.items() if set(candidate[key]).isdisjoint(baseline[key])]
        return {}, f"not comparable, no {name} run has the same {' and '.join(other or keys.values())}"

    differences = pairs[loss.name] - pairs[f"{loss.name}_baseline"]
    loss_scores: dict[str, Any] = {"difference": differences.mean(), "seeds": len(pairs)}
    if len(pairs) >= 2:
        loss_scores |= {**vars(paired_interval(differences)), "interval": "seeds"}
    elif over_documents := compare_documents(pairs["record"].iloc[0], pairs["record_baseline"].iloc[0], loss):
        loss_scores |= {**vars(over_documents), "interval": "documents"}
    comparisons = {loss.name: loss_scores}
    if loss is VAL_LOSS:
        # All have the same tokens and bytes to score, so that one factor turns the one unit into the other.
        factor = (pairs[VAL_BITS.name] / pairs[VAL_LOSS.name]).mean()
        in_bits = {
            key: factor * loss_scores[key] for key in ("difference", "low", "high") if key in loss_scores
        }
        comparisons[VAL_BITS.name] = loss_scores | in_bits
    for metric in metrics:
        if metric.unit == "percent" and (over_items := compare_items(pairs, metric)):
            comparisons[metric.name] = {**vars(over_items), "interval": "items", "seeds": len(pairs)}
    return comparisons, ""


def pair_runs(
    candidate: pd.DataFrame, baseline: pd.DataFrame, same: dict[str, str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The candidate's runs beside their partners (columns with `_baseline`), and what a pair has in common.

    That is `same`, and PAIR_KEYS where both were trained here.
    """
    if candidate["given"].any() or baseline["given"].any():
        candidate = candidate.drop_duplicates(list(same))  # one model beside another: nothing to pair by
    else:
        same = PAIR_KEYS | same
    others = baseline.drop_duplicates(list(same))
    return candidate.merge(others, on=list(same), suffixes=("", "_baseline")), same


def compare_documents(candidate: RunRecord, baseline: RunRecord, loss: Metric) -> Interval | None:
    """Difference in the loss's unit over the documents of two runs; None where they were not kept alike."""
    ours, theirs = candidate.documents, baseline.documents
    size, nats = ("tokens", 1.0) if loss is VAL_LOSS else ("bytes", math.log(2))
    if ours is None or theirs is None or len(ours) < 2 or size not in ours or size not in theirs:
        return None
    if not ours[["document", size]].equals(theirs[["document", size]]):
        return None
    return paired_interval((ours["loss"] - theirs["loss"]) / nats, ours[size])


def compare_items(pairs: pd.DataFrame, metric: Metric) -> Interval | None:
    """Difference in percentage points over the items that all runs answered, averaged over the pairs."""
    differences = []
    for ours, theirs in zip(pairs["record"], pairs["record_baseline"], strict=True):
        if ours.items is None or theirs.items is None:
            return None
        differences.append(_item_values(ours, metric) - _item_values(theirs, metric))
    points = 100 * pd.concat(differences, axis=1).mean(axis=1, skipna=False).dropna()
    # Items all answered alike have no spread to put an interval on, and [0, 0] would claim certainty.
    return paired_interval(points) if len(points) >= 2 and points.any() else None


def _item_values(record: RunRecord, metric: Metric) -> pd.Series:
    assert record.items is not None
    rows = (record.items["task"] == metric.task) & (record.items["metric"] == metric.key)
    return record.items[rows].set_index("doc_id")["value"].astype(float)
