"""Several comparisons with one shared baseline: Dunnett's distribution of the largest |t|."""

from functools import cache, lru_cache

import numpy as np
from scipy import stats
from scipy.optimize import brentq

POINTS = 64
"""Of each of the two quadratures: the probability is right to 1e-5 from one degree of freedom on."""


def within(limit: float, comparisons: int, df: float) -> float:
    """The probability that no |t| of so many comparisons with one baseline exceeds a limit.

    All arms have equal variance and as many runs, so that any two of the differences correlate by one half
    (Dunnett 1955, J. Am. Stat. Assoc. 50, 1096-1121). One comparison gives Student's t.

    Args:
        limit: of |t|.
        comparisons: how many designs are compared with the baseline.
        df: degrees of freedom of the shared variance.
    """
    shared, weights = _standard_normal()
    deviation, share = deviations(df)
    edge = np.sqrt(2) * limit * deviation[:, None]
    one = stats.norm.cdf(shared + edge) - stats.norm.cdf(shared - edge)
    return float(share @ (one**comparisons @ weights))


@lru_cache(maxsize=10_000)
def critical_value(level: float, comparisons: int, df: float) -> float:
    """The |t| that all of so many comparisons stay below with a probability of `level`."""
    apart = float(stats.t.isf((1 - level) / 2 / comparisons, df))  # Bonferroni's, which is never below
    if comparisons == 1 or level > 0.9999:  # so far out the two agree, and better than the quadrature
        return apart
    return float(brentq(lambda limit: within(limit, comparisons, df) - level, 0, 1.01 * apart))


@cache
def _standard_normal() -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.hermite_e.hermegauss(POINTS)
    return points, weights / np.sqrt(2 * np.pi)


@lru_cache(maxsize=1000)
def deviations(df: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of the shared standard deviation, by its expectation, and their weights."""
    points, weights = np.polynomial.legendre.leggauss(POINTS)
    # By probability, so that no part of the distribution is missed at any number of degrees of freedom.
    return np.sqrt(stats.chi2.ppf((points + 1) / 2, df) / df), weights / 2
