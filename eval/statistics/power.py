"""What a study can show before it is run: its power, and the seeds that a difference needs."""

import math

import numpy as np
from scipy import stats

from .dunnett import critical_value, deviations
from .effect import LEVEL

MOST_SEEDS = 50


def power(
    difference: float, seeds: int, *, seed_sd: float, document_sd: float, comparisons: int = 1
) -> float:
    """The probability that a study shows this true difference, pooled over its arms.

    Args:
        difference: in nats per token; its sign does not matter.
        seeds: of each arm, 2 at least.
        seed_sd: the standard deviation of one run's final loss over seeds.
        document_sd: the standard deviation of a mean difference over validation sets of this size.
        comparisons: designs that are compared with the baseline.
    """
    of_seeds, of_documents = 2 * seed_sd**2 / seeds, document_sd**2
    df = comparisons * (seeds - 1)
    # The half width varies with the measured seed deviation, of which few seeds give a rough idea.
    deviation, share = deviations(df)
    at_seeds, at_documents = (critical_value(LEVEL, comparisons, of) for of in (df, 1000))
    half = np.sqrt(at_seeds**2 * of_seeds * deviation**2 + at_documents**2 * of_documents)
    error = math.sqrt(of_seeds + of_documents)
    return float(share @ stats.norm.cdf((abs(difference) - half) / error))


def seeds_needed(
    difference: float, *, seed_sd: float, document_sd: float, comparisons: int = 1, at_least: float = 0.8
) -> int | None:
    """The fewest seeds that show this difference with a power of `at_least`.

    None where `MOST_SEEDS` do not: mostly the validation set is too small, which more seeds do not mend.
    """
    for seeds in range(2, MOST_SEEDS + 1):
        if (
            power(difference, seeds, seed_sd=seed_sd, document_sd=document_sd, comparisons=comparisons)
            >= at_least
        ):
            return seeds
    return None
