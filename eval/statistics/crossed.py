"""Differences between designs whose runs share seeds and are scored on shared documents.

Seeds and documents are two random effects that cross: every seed of every design is scored on every document,
as every reader reads every case in a multi-reader multi-case study (Gallas et al. 2009, Commun. Stat. Theory
Methods 38, 2586-2603). An interval over seeds alone speaks of these documents only: what a design gains on
them by chance it gains with every seed.
"""

import numpy as np

from .effect import Component, Effect


def effects(losses: np.ndarray, weights: np.ndarray) -> list[Effect]:
    """The difference of each arm to the first, with the noise that all arms have in common.

    What seeds and documents do to all arms alike cancels: the noise is that of arm by seed and of arm by
    document. It is pooled over the arms, which must be alike in it (`alike.arms_are_alike`); with two arms it
    is that of their difference. Each interval holds for all arms at once (`dunnett`).

    Args:
        losses: (arms, seeds, documents), summed over each document's tokens; the baseline's first. A single
            seed leaves the noise of documents, a single document that of seeds.
        weights: (documents,) tokens (or bytes, words, ones for items).
    """
    arms, seeds, documents = losses.shape
    total = weights.sum()
    means = losses.sum(axis=(1, 2)) / (seeds * total)
    # Each document by its weight, the mean over all of them the arm's.
    r = (losses - means[:, None, None] * weights) * documents / total
    components = tuple(_components(r))
    return [
        Effect(float(mean - means[0]), components, seeds, documents, comparisons=arms - 1)
        for mean in means[1:]
    ]


def _components(r: np.ndarray) -> list[Component]:
    """The parts of a difference's variance, of (arms, seeds, documents) whose means by arm are 0."""
    arms, seeds, documents = r.shape
    r = r - r.mean(axis=0)  # what is the same in all arms
    by_seed, by_document = r.mean(axis=2), r.mean(axis=1)
    rest = r - by_seed[:, :, None] - by_document[:, None, :]
    df_seed, df_document = (arms - 1) * (seeds - 1), (arms - 1) * (documents - 1)
    ms_seed = documents * np.sum(by_seed**2) / df_seed if df_seed else 0.0
    ms_document = seeds * np.sum(by_document**2) / df_document if df_document else 0.0
    # Both mean squares hold the residual's; it is taken out of one, so that it counts once.
    both = df_seed and df_document
    ms_rest = np.sum(rest**2) / (df_seed * (documents - 1)) if both else 0.0
    of_two = 2 / (seeds * documents)  # two arms are subtracted
    parts = (
        Component(of_two * float(ms_seed), df_seed),
        Component(of_two * float(max(ms_document - ms_rest, 0.0)), df_document),
    )
    return [part for part in parts if part.df]
