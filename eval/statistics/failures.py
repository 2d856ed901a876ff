"""Runs that blew up: found by a robust limit, counted, never dropped in silence."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from training.divergence.losses import FLOOR_MARGIN

DEVIATIONS = 10.0
"""Robust standard deviations of an arm's losses above its median from which a run counts as blown up."""
LEAST_EXCESS = 0.05
"""Nats per token above the median that no blow-up is below: seeds that agree closely make a narrow limit. As
much the baseline beats the unigram model by, where a setting learns at all."""


def limits(arms: Sequence[Sequence[float]]) -> list[float]:
    """The largest final loss, in nats per token, of each arm that is no blow-up; of fewer than three runs
    none can be said to be apart from the others.

    The spread is the median absolute deviation from the arm's median, pooled over the arms, so that an arm of
    three runs has a measure of it that its own outlier does not move.
    """
    medians = [float(np.median(losses)) for losses in arms]
    apart = [abs(x - m) for losses, m in zip(arms, medians, strict=True) for x in losses if len(losses) > 2]
    apart = [one for one in apart if one > 0]  # an arm's middle run is no measure of spread
    spread = float(np.median(apart)) / float(stats.norm.ppf(0.75)) if apart else 0.0
    excess = max(DEVIATIONS * spread, LEAST_EXCESS)
    return [
        median + excess if len(losses) > 2 else math.inf for median, losses in zip(medians, arms, strict=True)
    ]


def rate_interval(failed: int, planned: int) -> tuple[float, float]:
    """The 95 % interval of a rate of failure (Clopper and Pearson 1934, Biometrika 26, 404-413)."""
    interval = stats.binomtest(failed, planned).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


def describe_above_floor(loss: float) -> str:
    """That a run ended above its floor, in words that follow its name."""
    return f"ended at {loss:.3f} nats per token, more than {FLOOR_MARGIN:g} above guessing every token alike"
