"""Looking after each seed: the interval that holds however often one looks, and when it is clear."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from ...statistics.crossed import effects
from ...statistics.effect import Effect
from ...statistics.sequences import half_width
from ..outcomes import Outcomes
from ..plan import Plan
from ..queue import has_ended
from ..study import Rules
from .arms import losses_by_document, with_blow_ups
from .pairing import Pairs, arm_at, baseline_at, pairs_of, verdicts_of

Comparisons = Mapping[str, int]
"""By size: how many looks there were so far, this study's at that size among them."""


def decider(comparisons: Comparisons) -> Callable[[Plan, Outcomes, str, str, int], bool]:
    """When a sequential study needs no more seeds of a design."""

    def decided(plan: Plan, outcomes: Outcomes, size: str, design: str, count: int) -> bool:
        seeds = plan.study.seeds_at_most[:count]
        for at in verdicts_of(plan, size, design):
            baseline = baseline_at(plan, size, design, at)
            its, mine = with_blow_ups(
                [arm_at(plan, outcomes, size, one, at, seeds) for one in (baseline, design)]
            )
            if not all(outcome.is_finished for outcome in mine):
                return True  # its word is that it fails
            pairs = pairs_of(its, mine)
            if not pairs[0]:
                return False
            _, low, high = running_interval(pairs, plan.study.rules, comparisons[size])
            if not is_clear(low, high, plan.study.rules):
                return False
        return True

    return decided


def is_clear(low: float, high: float, rules: Rules) -> bool:
    """Whether an interval leaves nothing to ask: one side of zero, or too small to matter."""
    bound = rules.equivalent_within
    return high < 0 or low > 0 or (-bound < low and high < bound)


def looks_so_far(
    plan: Plan, outcomes: Outcomes, size: str, design: str, comparisons: Comparisons
) -> Iterator[str]:
    """A sentence for each comparison of a design, after the seeds with which it has run so far."""
    seeds = plan.study.seeds_at_most
    count = next(
        (n for n in range(len(seeds), 1, -1) if has_ended(plan, outcomes, size, design, seeds[:n])), 0
    )
    for at in verdicts_of(plan, size, design) if count else ():
        baseline = baseline_at(plan, size, design, at)
        pairs = pairs_of(
            *with_blow_ups(
                [arm_at(plan, outcomes, size, one, at, seeds[:count]) for one in (baseline, design)]
            )
        )
        if pairs[0]:
            effect, low, high = running_interval(pairs, plan.study.rules, comparisons[size])
            yield (
                f"{design} at size {size}, {at}, after {count} seeds: {effect.estimate:+.4f} "
                f"[{low:+.4f}, {high:+.4f}], which holds however often one looks"
            )


@lru_cache(maxsize=4096)
def running_interval(pairs: Pairs, rules: Rules, comparisons: int) -> tuple[Effect, float, float]:
    """The difference after these seeds, with what the intervals after each of them have in common: all hold
    the truth at once. Where they have nothing in common, which is their error, the last one stands."""
    losses, tokens = losses_by_document(pairs)
    (effect,) = effects(losses, tokens)
    means = losses.sum(axis=2) / tokens.sum()
    of_documents = effect.components[-1].variance if effect.documents > 1 else 0.0
    half = half_width([*(means[1] - means[0])], of_documents, (1 - rules.confidence) / comparisons)
    low, high = effect.estimate - half, effect.estimate + half
    if len(pairs[0]) > 2:
        _, before_low, before_high = running_interval((pairs[0][:-1], pairs[1][:-1]), rules, comparisons)
        if max(low, before_low) < min(high, before_high):
            low, high = max(low, before_low), min(high, before_high)
    return effect, low, high
