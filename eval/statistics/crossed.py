"""Differences between designs whose runs share seeds and are scored on shared documents.

Seeds and documents are two random effects that cross: every seed of every design is scored on every document,
as every reader reads every case in a multi-reader multi-case study (Gallas et al. 2009, Commun. Stat. Theory
Methods 38, 2586-2603). An interval over seeds alone speaks of these documents only: what a design gains on
them by chance it gains with every seed.
"""

import numpy as np
from scipy import stats

from .effect import Component, Effect

ALIKE_P = 0.01
"""Arms whose variances over seeds differ by Bartlett's test at this p-value do not share one."""


def effects(losses: np.ndarray, weights: np.ndarray) -> list[Effect]:
    """The difference of each arm to the first one, with its noise; each interval holds for all arms at once.

    What seeds and documents do to all arms alike cancels. The noise over seeds is pooled over the arms where
    they are alike in it: three seeds of eleven arms measure it far better than three of two. The noise over
    documents is each difference's own: its many documents need no help, and a design that is farther from the
    baseline differs more from document to document.

    Args:
        losses: (arms, seeds, documents), summed over each document's tokens; the baseline's first. A single
            seed leaves the noise of documents, a single document that of seeds.
        weights: (documents,) tokens (or bytes, words, ones for items).
    """
    arms, seeds, documents = losses.shape
    # Each document by its weight; the mean over seeds and documents is the arm's loss per unit of weight.
    r = losses * documents / weights.sum()
    means = r.mean(axis=(1, 2))
    residuals = r - means[:, None, None] * (weights * documents / weights.sum())
    is_pooled = arms == 2 or (seeds > 1 and arms_are_alike(residuals.mean(axis=2)))
    pooled = over_seeds(residuals) if is_pooled else None
    found = []
    for arm in range(1, arms):
        pair = residuals[[0, arm]]
        parts = (pooled or over_seeds(pair), over_documents(pair, weights))
        found.append(
            Effect(
                float(means[arm] - means[0]),
                tuple(part for part in parts if part.df),
                seeds,
                documents,
                comparisons=arms - 1,
                is_pooled=is_pooled,
            )
        )
    return found


def over_seeds(residuals: np.ndarray) -> Component:
    """The part of two arms' difference that another choice of seeds moves, pooled over (arms, seeds,
    documents)."""
    arms, seeds, _ = residuals.shape
    df = (arms - 1) * (seeds - 1)
    by_seed = residuals.mean(axis=2)
    apart = by_seed - by_seed.mean(axis=0) - by_seed.mean(axis=1, keepdims=True)
    return Component(2 * float(np.sum(apart**2)) / df / seeds if df else 0.0, df)


def over_documents(pair: np.ndarray, weights: np.ndarray) -> Component:
    """The part of two arms' difference that other documents move with every seed, of (2, seeds, documents).

    The mean square over documents holds what is left between seeds and documents too, as that over seeds
    does: it is taken out here, so that it counts once. Documents of uneven weight count as fewer, as many as
    (sum of weights)^2 / sum of squared weights (Kish 1965, Survey Sampling).
    """
    _, seeds, documents = pair.shape
    if documents == 1:
        return Component(0.0, 0)
    difference = pair[1] - pair[0]
    by_document = difference.mean(axis=0)
    variance = float(np.var(by_document, ddof=1))
    if seeds > 1:
        rest = difference - by_document - difference.mean(axis=1, keepdims=True) + difference.mean()
        variance -= float(np.sum(rest**2)) / ((seeds - 1) * (documents - 1)) / seeds
    effective = float(weights.sum() ** 2 / (weights.astype(float) ** 2).sum())
    return Component(max(variance, 0.0) / documents, max(effective - 1, 1.0))


def arms_are_alike(by_seed: np.ndarray) -> bool:
    """Whether (arms, seeds) losses vary over seeds alike in all arms, by Bartlett's test.

    It takes heavy tails for differences too, and then the arms keep wider intervals of their own.
    """
    apart = by_seed - by_seed.mean(axis=0)
    spread = apart.var(axis=1, ddof=1)
    if not spread.all():
        return not spread.any()
    return bool(stats.bartlett(*apart).pvalue > ALIKE_P)
