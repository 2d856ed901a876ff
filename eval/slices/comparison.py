"""Differences to the baseline in each slice of the validation loss, for the report."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ..evidence.comparison import Scorecard
from ..evidence.differences import SAME_TOKENS, effect_columns, pair_runs
from ..evidence.results import RunRecord
from ..statistics.crossed import effects

BUCKET = ["low", "high"]
"""The columns that name a bucket of a kind."""
TITLES = {
    "position": "position in the block",
    "frequency": "times that the token occurs in the validation set",
    "length": "tokens of the document",
}
"""By kind, what its values count."""
COLUMNS = (
    "kind", "name", "low", "high", "tokens", "loss", "difference", "interval_low", "interval_high", "over",
)  # fmt: skip
NO_INTERVAL = (math.nan, math.nan, "")


def bucket_title(low: int, high: int) -> str:
    """The values of a bucket as text: "0", "512-1,023"."""
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def compare_slices(card: Scorecard) -> dict[str, pd.DataFrame]:
    """By tokenizer a row for each kind, bucket and variant with slices of its final validation.

    The baseline comes first.

    Columns: kind, name, low, high, tokens, loss (nats per token, the mean over the variant's finished runs),
    and where it is compared difference, interval_low, interval_high (95 %) and what that is over ("seeds",
    "documents" or both). Of runs that cut the validation set otherwise than the baseline, or have another
    one, the kinds that are not alike are left out.
    """
    has_slices = [record.slices is not None for record in card.runs["record"]]
    runs = card.runs[card.runs["counted"] & pd.Series(has_slices, card.runs.index)]
    names = list(card.rows.sort_values("baseline", ascending=False, kind="stable")["name"])
    tables = {}
    for tokenizer, of_tokenizer in runs.groupby("tokenizer", sort=False):
        rows = [row for kind in TITLES for row in _rows_of(kind, of_tokenizer, names)]
        tables[str(tokenizer)] = pd.DataFrame(rows, columns=list(COLUMNS))
    return tables


def _rows_of(kind: str, runs: pd.DataFrame, names: list[str]) -> Iterator[tuple]:
    first = runs.sort_values("baseline", ascending=False, kind="stable")["record"].iloc[0]
    cut = ["low", "high", "document", "tokens"]
    expected = _slices(first, kind)[cut]
    runs = runs[[_slices(record, kind)[cut].equals(expected) for record in runs["record"]]]
    same_set = runs["val_fingerprint"].fillna("") == (first.summary.get("val_fingerprint") or "")
    runs = runs[same_set]
    tokens = expected.groupby(BUCKET)["tokens"].sum()
    baseline = runs[runs["baseline"]]
    for name in names:
        group = runs[runs["name"] == name]
        if group.empty:
            continue
        losses = pd.concat([_losses(record, kind) for record in group["record"]], axis=1).mean(axis=1)
        is_baseline = group["baseline"].iloc[0]
        compared = {} if is_baseline else _differences(kind, pair_runs(group, baseline, SAME_TOKENS)[0])
        for bucket, loss in losses.items():
            yield kind, name, *bucket, tokens[bucket], loss, *compared.get(bucket, (math.nan, *NO_INTERVAL))


def _differences(kind: str, pairs: pd.DataFrame) -> dict[Any, tuple]:
    """By bucket the difference, its interval and what that is over, as the scorecard has of the whole."""
    if pairs.empty:
        return {}
    tables = [[_slices(record, kind) for record in pairs[of]] for of in ("record_baseline", "record")]
    losses = np.array([[table["loss"] for table in of_arm] for of_arm in tables])  # (2, pairs, rows)
    found: dict[Any, tuple] = {}
    for bucket, rows in tables[0][0].groupby(BUCKET):
        (effect,) = effects(losses[:, :, rows.index], rows["tokens"].to_numpy())
        columns = effect_columns(effect)
        found[bucket] = columns["difference"], columns["low"], columns["high"], columns["interval"] or ""
    return found


def _slices(record: RunRecord, kind: str) -> pd.DataFrame:
    assert record.slices is not None
    return record.slices[record.slices["kind"] == kind].reset_index(drop=True)


def _losses(record: RunRecord, kind: str) -> pd.Series:
    """Nats per token by bucket."""
    sums = _slices(record, kind).groupby(BUCKET)[["loss", "tokens"]].sum()
    return sums["loss"] / sums["tokens"]
