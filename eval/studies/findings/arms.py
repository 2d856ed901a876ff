"""Runs as arms of a comparison: which of them blew up, and their losses by seed and document."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import median

import numpy as np

from training.run.reader import read_summary

from ...evidence.results import RunRecord
from ...statistics.failures import LEAST_EXCESS, describe_above_floor, limits
from ..outcomes import Outcome

Arm = Sequence[Outcome]
"""One outcome for each judged seed."""


def with_blow_ups(arms: Sequence[Arm]) -> list[list[Outcome]]:
    """The arms, the baseline's first, in which finished runs that blew up are said to have: far above their
    arm, no better than token frequencies where the baseline clearly is, or with a spike that stayed."""
    finished = [[outcome.loss for outcome in arm if outcome.is_finished] for arm in arms]
    known = [losses for losses in finished if losses]
    highest = dict(zip((id(losses) for losses in known), limits(known) if known else (), strict=True))
    its = median(finished[0]) if finished[0] else math.inf
    found = []
    for arm, losses in zip(arms, finished, strict=True):
        limit = highest.get(id(losses), math.inf)
        found.append([_marked(outcome, limit, its) for outcome in arm])
    return found


def _marked(outcome: Outcome, limit: float, its: float) -> Outcome:
    if not outcome.is_finished:
        return outcome
    loss, reason = outcome.loss, ""
    if outcome.above_floor:
        reason = describe_above_floor(loss)
    elif loss > limit:
        reason = f"ended at {loss:.4f}, above {limit:.4f}, the limit of its runs"
    elif loss >= outcome.floor > its + LEAST_EXCESS:
        reason = f"ended at {loss:.4f}, no better than token frequencies alone ({outcome.floor:.4f})"
    elif outcome.spike > 0:
        reason = f"has a spike of {outcome.spike:.2f} in its training loss that it did not recover from"
    return replace(outcome, status="blew up", reason=reason) if reason else outcome


def losses_by_document(arms: Sequence[Arm]) -> tuple[np.ndarray, np.ndarray]:
    """Of arms whose runs have all finished: losses (arms, seeds, documents), each summed over a document's
    tokens, and the documents' tokens. One document stands for all where not every run has kept them."""
    found = [[_documents(outcome.folder) if outcome.folder else None for outcome in arm] for arm in arms]
    first = found[0][0]
    alike = first is not None and all(
        one is not None and np.array_equal(one[0], first[0]) for arm in found for one in arm
    )
    if not alike:
        return np.array([[[outcome.loss] for outcome in arm] for arm in arms]), np.ones(1)
    assert first is not None
    return np.array([[one[1] for one in arm if one is not None] for arm in found]), first[0]


@lru_cache(maxsize=256)
def _documents(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Tokens and summed losses of a run's validation documents; None where they are not kept."""
    table = RunRecord(folder, read_summary(folder)).documents
    if table is None:
        return None
    table = table.sort_values("document")
    return table["tokens"].to_numpy(), table["loss"].to_numpy()
