"""Runs that blew up: they count as failures of their design, and not in its mean."""

import math

import numpy as np
import pandas as pd

from training.divergence.losses import SPIKE, ended_above_floor

from ..statistics.failures import LEAST_EXCESS, describe_above_floor, limits, rate_interval
from .results import RunRecord

FAILED = "diverged"
"""How a run ends that its design broke; one that `failed` was broken by something else."""
WINDOWS = 20
"""Into how many parts a run's training loss is cut to look for such a spike."""


def find_blow_ups(table: pd.DataFrame) -> pd.Series:
    """Of each run of `tabulate_runs` how it blew up in words, empty for one that did not.

    Only finished runs are looked at: one that diverged says so itself. A final loss above the unigram model's
    is a blow-up where the baseline's runs beat that model clearly; where they do not, nothing has learnt. One
    clearly above that of guessing every token alike always is.
    """
    reasons = pd.Series("", table.index)
    trained = table[table["counted"] & ~table["given"]]
    groups = [group for _, group in trained.groupby("name", sort=False)]
    highest = limits([group["val_loss"].tolist() for group in groups])
    baseline = trained[trained["baseline"]]
    floors = [_floor(record) for record in baseline["record"]]
    learns = bool((baseline["val_loss"] < np.array(floors) - LEAST_EXCESS).any())
    for group, limit in zip(groups, highest, strict=True):
        for index, loss, record in zip(group.index, group["val_loss"], group["record"], strict=True):
            if ended_above_floor(loss, record.summary.get("floors")):
                reasons[index] = describe_above_floor(loss)
            elif loss > limit:
                reasons[index] = f"ended at {loss:.3f} nats per token, far above its other seeds"
            elif learns and loss >= _floor(record):
                reasons[index] = f"ended at {loss:.3f} nats per token, above the unigram model"
            elif (spike := unrecovered(record)) is not None:
                reasons[index] = f"has a spike that it did not recover from: {spike:+.2f} nats per token"
    return reasons


def unrecovered(record: RunRecord) -> float | None:
    """How far the training loss at the end lies above its best, where that is more than `SPIKE`."""
    losses = record.train["loss"].dropna().to_numpy()
    if len(losses) < 2 * WINDOWS:
        return None
    size = len(losses) // WINDOWS
    means = [losses[start : start + size].mean() for start in range(len(losses) % size, len(losses), size)]
    above = float(means[-1] - min(means))
    return above if above > SPIKE else None


def describe_failures(group: pd.DataFrame) -> str:
    """How many of a row's planned runs failed, with the interval of the rate; empty where none did."""
    failed = int(((group["status"] == FAILED) | (group["blow_up"] != "")).sum())
    if not failed:
        return ""
    planned = failed + int(group["counted"].sum())
    low, high = rate_interval(failed, planned)
    return f"fails in {failed} of {planned} runs (95 % interval of the rate {low:.0%} to {high:.0%})"


def _floor(record: RunRecord) -> float:
    return (record.summary.get("floors") or {}).get("unigram", math.inf)
