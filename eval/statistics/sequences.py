"""Intervals that hold however often one looks: seeds are added until the answer is clear."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

EFFECT_VARIANCE = 10.0
"""Of the effect sizes (difference per seed deviation) that the sequence is sharpest for: a gain that is worth
having is some seed deviations large. Any value is valid; another one only needs more seeds."""


def half_width(differences: Sequence[float], document_variance: float, alpha: float) -> float:
    """Half of the interval around the mean difference after these seeds; infinite while they are too few.

    All intervals of a study together, one after each seed, hold the truth with 1 - `alpha`. Half of alpha
    goes to the seeds, by the mixture t-test martingale with a normal prior on the effect size (Perez-Ortiz et
    al. 2022, arXiv 2208.07610; Wang and Ramdas 2023, arXiv 2310.03722), half to the documents, whose chance
    gain is the same at each look.

    Args:
        differences: of the paired seeds so far, candidate minus baseline.
        document_variance: of the mean difference, for other text; 0 where documents were not kept.
        alpha: the error of the whole sequence, divided by the number of designs where there are several.
    """
    n = len(differences)
    spread = float(np.std(differences, ddof=1)) if n > 1 else 0.0
    limit = _largest_t(n, alpha / 2)
    if spread == 0 or math.isinf(limit):
        return math.inf
    seeds = limit * spread / math.sqrt(n)
    return seeds + float(stats.norm.isf(alpha / 4)) * math.sqrt(document_variance)


def _largest_t(n: int, alpha: float) -> float:
    """The |t| of n differences at which the martingale reaches 1 / alpha."""
    if n < 2:
        return math.inf
    growth = 1 + n * EFFECT_VARIANCE
    ratio = (math.sqrt(growth) / alpha) ** (2 / n)  # of (1 + t^2 / df) to (1 + t^2 / (df growth))
    return math.sqrt((n - 1) * (ratio - 1) / (1 - ratio / growth)) if ratio < growth else math.inf
