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
"""Arms of which one varies more over seeds than the others, at this p-value, do not share their noise."""


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
    is_pooled = arms == 2 or seeds == 1 or arms_are_alike(residuals.mean(axis=2))
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
    """Whether no arm of (arms, seeds) losses varies more over seeds than the others do.

    Each arm's distance to the others' mean is tested against the noise among them, an F test that is exact
    for normal noise, at `ALIKE_P` over all arms (Bonferroni). Heavy tails fail it more often, and then the
    arms keep wider intervals of their own.
    """
    arms, seeds = by_seed.shape
    for arm in range(arms):
        others = np.delete(by_seed, arm, axis=0)
        apart = others - others.mean(axis=0) - others.mean(axis=1, keepdims=True) + others.mean()
        df = (seeds - 1, (arms - 2) * (seeds - 1))
        of_others = np.sum(apart**2) / df[1]
        of_arm = np.var(by_seed[arm] - others.mean(axis=0), ddof=1) * (arms - 1) / arms
        if stats.f.sf(of_arm / of_others, *df) * arms < ALIKE_P if of_others else of_arm:
            return False
    return True
