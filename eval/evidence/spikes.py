"""Spikes of a run's training loss, by the rule by which the run itself counts them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from training.divergence.losses import BEFORE, SPIKE, spike_height

from .results import RunRecord


@dataclass(frozen=True)
class Spikes:
    """Peaks of a training loss that it came back from.

    Attributes:
        count: how many there were; steps next to each other are one.
        highest: nats per token above the steps before.
        step: of the highest.
    """

    count: int
    highest: float
    step: int


def spike_heights(losses: pd.Series) -> pd.Series:
    """Of a training loss those entries that are spikes: how far each is above the steps before."""
    usual = losses.shift().rolling(BEFORE, min_periods=1).median()
    values = losses.tolist()
    # The rule itself, one step at a time, is slow over a long run: most steps are nowhere near one.
    heights = {
        losses.index[at]: spike_height(values[at], values[max(0, at - BEFORE) : at])
        for at in np.flatnonzero(losses > usual + SPIKE)
    }
    return pd.Series(heights, dtype=float).dropna()


def find_spikes(record: RunRecord) -> Spikes | None:
    """Where a run's training loss stood far above the steps before; None for nowhere."""
    heights = spike_heights(record.train.set_index("step")["loss"])
    if heights.empty:
        return None
    apart = pd.Series(heights.index).diff() > BEFORE
    return Spikes(1 + int(apart.sum()), float(heights.max()), int(heights.idxmax()))
