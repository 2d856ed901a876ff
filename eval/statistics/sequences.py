"""Intervals that hold however often one looks: seeds are added until the answer is clear."""

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

EFFECT_VARIANCE = 10.0
"""Of the effect sizes (difference per seed deviation) that the sequence is sharpest for: a gain that is worth
having is some seed deviations large. Any value is valid; another one only needs more seeds."""


def half_width(differences: ArrayLike, document_variance: float, alpha: float) -> Any:
    """Half of the interval around the mean difference after these seeds; infinite while they are too few.

    All intervals of a study together, one after each seed, hold the truth with 1 - `alpha`. Half of alpha
    goes to the seeds, by the mixture t-test martingale with a normal prior on the effect size (Perez-Ortiz et
    al. 2022, arXiv 2208.07610; Wang and Ramdas 2023, arXiv 2310.03722), half to the documents, whose chance
    gain is the same at each look.

    Args:
        differences: (..., seeds) of the paired seeds so far, candidate minus baseline.
        document_variance: of the mean difference, for other text; 0 where documents were not kept.
        alpha: the error of the whole sequence, divided by the number of designs where there are several.

    Returns an array of (...,), for one design a number.
    """
    values = np.asarray(differences, dtype=float)
    n = values.shape[-1]
    limit = _largest_t(n, alpha / 2)
    if math.isinf(limit):
        return np.full(values.shape[:-1], math.inf)[()]
    spread = values.std(axis=-1, ddof=1)
    half = limit * spread / math.sqrt(n) + _normal(alpha / 4) * math.sqrt(document_variance)
    return np.where(spread > 0, half, math.inf)[()]


@cache
def _normal(tail: float) -> float:
    return float(stats.norm.isf(tail))


@cache
def _largest_t(n: int, alpha: float) -> float:
    """The |t| of n differences at which the martingale reaches 1 / alpha."""
    if n < 2:
        return math.inf
    growth = 1 + n * EFFECT_VARIANCE
    ratio = (math.sqrt(growth) / alpha) ** (2 / n)  # of (1 + t^2 / df) to (1 + t^2 / (df growth))
    return math.sqrt((n - 1) * (ratio - 1) / (1 - ratio / growth)) if ratio < growth else math.inf
