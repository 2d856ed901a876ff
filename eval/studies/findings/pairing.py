"""Which runs a verdict holds against each other."""

from collections.abc import Sequence
from typing import Literal

from ..outcomes import Outcome, Outcomes
from ..plan import Cell, Plan
from ..queue import best_rate

At = Literal["shared rate", "best rate", "equal budget"]
"""At the rate that all share, each at its own best, and so beside a widened baseline."""
Pairs = tuple[tuple[Outcome, ...], tuple[Outcome, ...]]
"""The baseline's runs and the design's, of the same seeds."""


def verdicts_of(plan: Plan, size: str, design: str) -> tuple[At, ...]:
    """Which there are of a design at a size."""
    several: tuple[At, ...] = ("best rate",) if len(plan.rates(size, design)) > 1 else ()
    over: tuple[At, ...] = ("equal budget",) if (size, design) in plan.widened else ()
    return ("shared rate", *several, *over)


def baseline_at(plan: Plan, size: str, design: str, at: At) -> str:
    """What a design is held against."""
    return plan.baselines(size, design)[-1 if at == "equal budget" else 0]


def rate_at(plan: Plan, outcomes: Outcomes, size: str, design: str, at: At) -> str:
    """The label of a design's rate; the shared one while its best is not known."""
    best = None if at == "shared rate" else best_rate(plan, outcomes, size, design)
    return best or plan.shared[size]


def arm_at(
    plan: Plan, outcomes: Outcomes, size: str, design: str, at: At, seeds: Sequence[int]
) -> list[Outcome]:
    """A design's judged runs, which have all ended."""
    rate = rate_at(plan, outcomes, size, design, at)
    return [outcomes[Cell(size, design, rate, seed)] for seed in seeds]


def pairs_of(its: Sequence[Outcome], mine: Sequence[Outcome]) -> Pairs:
    """Of the seeds with which both finished."""
    both = [n for n, pair in enumerate(zip(its, mine, strict=True)) if all(one.is_finished for one in pair)]
    return tuple(its[n] for n in both), tuple(mine[n] for n in both)
