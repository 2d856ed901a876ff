"""Each row's runs beside the baseline's: what may be subtracted, by how much they differ, and how surely."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from ..statistics.crossed import effects
from ..statistics.effect import Effect
from .grouping import PAIR_KEYS, RATES
from .metrics import VAL_BITS, VAL_LOSS, Metric
from .results import RunRecord

SAME_TOKENS = {"val_fingerprint": "validation set"}  # for losses in nats per token
SAME_TEXT = {"val_text": "validation text"}  # for losses in bits per byte
EQUIVALENT_WITHIN = 0.003
"""Nats per token: a design that is shown to differ by less is called equivalent."""


@dataclass
class Comparison:
    """A row against the baseline.

    Attributes:
        pairs: its runs, beside their partners' columns with `_baseline`.
        loss: of which they are compared.
        reason: why there is no difference; empty where there is one.
        other_rates: settings of `RATES` that the pairs do not share, in words; empty where they share all.
        scores: by metric the columns of the scorecard's `scores` that a comparison fills.
    """

    pairs: pd.DataFrame = field(default_factory=pd.DataFrame)
    loss: Metric = VAL_LOSS
    reason: str = ""
    other_rates: str = ""
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples:
    """What a row and the baseline are compared by: of each pair of runs a loss of each document or item.

    Attributes:
        losses: (2, pairs, documents), summed over each; the baseline's first. One document is the run's mean.
        weights: (documents,).
        shared: what two rows must have alike to be compared together: baseline runs and documents.
    """

    losses: np.ndarray
    weights: np.ndarray
    shared: tuple[Any, ...]


def compare_rows(
    table: pd.DataFrame,
    baseline: str,
    yardstick: Metric,
    metrics: Sequence[Metric],
    looks: int | None = None,
) -> dict[str, Comparison]:
    """Every row but the baseline's own against it, by name.

    Args:
        table: of `tabulate_runs`.
        baseline: in sentences.
        yardstick: what the verdict is about.
        metrics: what is compared beside it.
        looks: comparisons that an interval has to hold for, where there were more than here.
    """
    counted = table[table["counted"]]
    found = {}
    for name, group in table[~table["baseline"]].groupby("name", sort=False):
        found[str(name)] = pair_up(group[group["counted"]], counted[counted["baseline"]], baseline, yardstick)
    compared = {name: one for name, one in found.items() if not one.reason}
    # A model that was not trained here is no design, and so no comparison that an interval has to hold for.
    for names in (set(table.loc[~table["given"], "name"]), set(table.loc[table["given"], "name"])):
        rows = {name: one for name, one in compared.items() if name in names}
        for loss in (VAL_LOSS, VAL_BITS):
            samples = {name: loss_samples(one.pairs, loss) for name, one in rows.items() if one.loss is loss}
            for name, effect in effects_of(samples, looks).items():
                rows[name].scores |= _loss_scores(rows[name].pairs, loss, effect)
        for metric in metrics:
            items = {name: item_samples(one.pairs, metric) for name, one in rows.items()}
            for name, effect in effects_of({k: v for k, v in items.items() if v is not None}, looks).items():
                rows[name].scores[metric.name] = item_scores(effect, metric, rows[name].pairs)
    return found


def pair_up(candidate: pd.DataFrame, baseline: pd.DataFrame, name: str, yardstick: Metric) -> Comparison:
    """The candidate's finished runs beside their partners, or why there are none."""
    if candidate.empty:
        return Comparison(reason="not finished")
    if baseline.empty:
        return Comparison(reason=f"no finished {name} run to compare with")
    same, loss = SAME_TOKENS, VAL_LOSS
    if yardstick is VAL_BITS and set(candidate["tokenizer"]).isdisjoint(baseline["tokenizer"]):
        same, loss = SAME_TEXT, VAL_BITS
    pairs, keys = pair_runs(candidate, baseline, same)
    if pairs.empty:
        other = [title for key, title in keys.items() if set(candidate[key]).isdisjoint(baseline[key])]
        titles = " and ".join(other or keys.values())
        return Comparison(reason=f"not comparable, no {name} run has the same {titles}")
    is_trained = not (pairs["given"].any() or pairs["given_baseline"].any())
    return Comparison(pairs, loss, other_rates=_other_rates(pairs) if is_trained else "")


def pair_runs(
    candidate: pd.DataFrame, baseline: pd.DataFrame, same: dict[str, str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The candidate's runs beside their partners (columns with `_baseline`), and what a pair has in common.

    That is `same`, and PAIR_KEYS where both were trained here. Partners with the same `RATES` are taken where
    there are some.
    """
    if candidate["given"].any() or baseline["given"].any():
        candidate = candidate.drop_duplicates(list(same))  # one model beside another: nothing to pair by
        others = baseline.drop_duplicates(list(same))
        return candidate.merge(others, on=list(same), suffixes=("", "_baseline")), same
    same = PAIR_KEYS | same
    keys = [*same, *RATES]
    pairs = candidate.merge(baseline.drop_duplicates(keys), on=keys, suffixes=("", "_baseline"))
    if pairs.empty:
        keys = [*same]
        pairs = candidate.merge(baseline.drop_duplicates(keys), on=keys, suffixes=("", "_baseline"))
    return pairs, same


def _other_rates(pairs: pd.DataFrame) -> str:
    parts = []
    for key, title in RATES.items():
        if f"{key}_baseline" in pairs and (pairs[key] != pairs[f"{key}_baseline"]).any():
            ours, theirs = (", ".join(dict.fromkeys(pairs[of])) for of in (key, f"{key}_baseline"))
            parts.append(f"{title} ({ours} against {theirs})")
    return " and ".join(parts)


def loss_samples(pairs: pd.DataFrame, loss: Metric) -> Samples:
    """Losses by document in the loss's unit where all runs kept them alike, else each run's mean."""
    size, nats = ("tokens", 1.0) if loss is VAL_LOSS else ("bytes", math.log(2))
    runs: Iterable[tuple[RunRecord, RunRecord]] = zip(pairs["record_baseline"], pairs["record"], strict=True)
    both = [(its.documents, ours.documents) for its, ours in runs]
    first = both[0][0]
    folders = tuple(str(record.folder) for record in pairs["record_baseline"])
    if first is None or not all(_is_cut_alike(first, one, size) for pair in both for one in pair):
        means = np.array([pairs[f"{loss.name}_baseline"], pairs[loss.name]], dtype=float)
        return Samples(means[:, :, None], np.ones(1), (folders, "means"))
    losses = np.array([[table["loss"].to_numpy() / nats for table in of] for of in zip(*both, strict=True)])
    return Samples(losses, first[size].to_numpy(float), (folders, len(first), float(first[size].sum())))


def _is_cut_alike(one: pd.DataFrame, other: pd.DataFrame | None, size: str) -> bool:
    """Whether two runs kept the losses of the same documents, more than one, with this measure of size."""
    columns = ["document", size]
    if other is None or len(one) < 2 or size not in one or size not in other:
        return False
    return one[columns].equals(other[columns])


def item_samples(pairs: pd.DataFrame, metric: Metric) -> Samples | None:
    """A task's scores by item, of the items that all runs answered; None where it has none to compare.

    Accuracies in percent; of perplexities and bits the negative log-likelihood in nats, with its weights.
    """
    if not metric.task or metric.unit not in ("percent", "perplexity", "bits/byte", "nats/token"):
        return None
    tables = []
    for of in ("record_baseline", "record"):
        for record in pairs[of]:
            if record.items is None:
                return None
            rows = (record.items["task"] == metric.task) & (record.items["metric"] == metric.key)
            tables.append(record.items[rows].drop_duplicates("doc_id").set_index("doc_id"))
    shared = tables[0].index
    for table in tables[1:]:
        shared = shared.intersection(table.index)
    shared = shared.sort_values()
    if len(shared) < 2:
        return None
    values = np.array([table.loc[shared, "value"].to_numpy(float) for table in tables])
    if metric.unit == "percent":
        weights, losses = np.ones(len(shared)), 100 * values
    elif "weight" in tables[0]:
        weights = tables[0].loc[shared, "weight"].to_numpy(float)
        losses = -values * weights
    else:
        return None
    losses = losses.reshape(2, len(pairs), len(shared))
    folders = tuple(str(record.folder) for record in pairs["record_baseline"])
    return Samples(losses, weights, (folders, tuple(shared)))


def effects_of(samples: Mapping[str, Samples], looks: int | None) -> dict[str, Effect]:
    """Each row's difference with its noise.

    Rows that share baseline runs and documents are compared together. Every interval holds for all rows at
    once, or for as many looks as there were.
    """
    comparisons = max(looks or 1, len(samples))
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, of in samples.items():
        groups.setdefault((of.shared, of.losses.shape), []).append(name)
    found = {}
    for names in groups.values():
        first = samples[names[0]]
        arms = np.concatenate([first.losses[:1], *(samples[name].losses[1:] for name in names)])
        for name, effect in zip(names, effects(arms, first.weights), strict=True):
            # Comparisons elsewhere have noise of their own, which Dunnett's limits do not know.
            is_pooled = effect.is_pooled and comparisons == effect.comparisons
            found[name] = replace(effect, comparisons=comparisons, is_pooled=is_pooled)
    return found


def _loss_scores(pairs: pd.DataFrame, loss: Metric, effect: Effect) -> dict[str, dict[str, Any]]:
    scores = {loss.name: effect_columns(effect)}
    if loss is VAL_LOSS:
        # All have the same tokens and bytes to score, so that one factor turns the one unit into the other.
        factor = (pairs[VAL_BITS.name] / pairs[VAL_LOSS.name]).mean()
        scores[VAL_BITS.name] = scaled(scores[loss.name], factor)
    return scores


def effect_columns(effect: Effect) -> dict[str, Any]:
    """An effect as columns of `scores`; without an interval where its noise was not measured."""
    low, high = effect.interval() if effect.is_measured else (math.nan, math.nan)
    over = " and ".join(
        word
        for word, count in (("seeds", effect.seeds), ("documents", effect.documents))
        if count > 1 and effect.is_measured
    )
    return {
        "difference": effect.estimate,
        "low": low,
        "high": high,
        "p_value": effect.p_value if effect.is_measured else math.nan,
        "n": effect.documents if effect.seeds == 1 else effect.seeds,
        "seeds": effect.seeds,
        "documents": effect.documents,
        "interval": over or None,
        "smallest_shown": effect.smallest_shown() if effect.is_measured else math.nan,
        "is_equivalent": effect.is_measured and effect.is_equivalent(EQUIVALENT_WITHIN),
    }


def scaled(columns: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The same in another unit."""
    sizes = ("difference", "low", "high", "smallest_shown")
    return {key: factor * value if key in sizes else value for key, value in columns.items()}


def item_scores(effect: Effect, metric: Metric, pairs: pd.DataFrame) -> dict[str, Any]:
    """An effect on a task's items as columns of `scores`, in the metric's own unit.

    Of a perplexity the difference of its logarithm is what has the interval: its ends are turned back.
    """
    columns = effect_columns(effect)
    if columns["interval"]:
        columns["interval"] = columns["interval"].replace("documents", "items")
    columns["is_equivalent"] = False
    if metric.unit == "bits/byte":
        return scaled(columns, 1 / math.log(2))
    if metric.unit == "perplexity":
        before = np.mean([record.scores[metric.task][metric.key] for record in pairs["record_baseline"]])
        for key in ("difference", "low", "high", "smallest_shown"):
            columns[key] = float(before * np.expm1(columns[key]))
    return columns
