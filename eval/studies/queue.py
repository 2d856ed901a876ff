"""Which runs of a study come next: it follows from the plan and from how runs have ended, for every worker.

Nothing else is kept: workers on several nodes see the same outcomes and so come to the same answer.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from .findings.arms import with_blow_ups
from .outcomes import Outcomes
from .plan import Cell, Plan

Decided = Callable[[Plan, Outcomes, str, str, int], bool]
"""Of plan, outcomes, size, design and a number of judged seeds: whether they make its answer clear."""


def next_cells(plan: Plan, outcomes: Outcomes, decided: Decided) -> list[Cell]:
    """The runs that can be started now, in order: small sizes first, in blocks of a seed, the baseline first.

    Runs that have ended are not among them; those that others work on are.
    """
    found = []
    for size in plan.sizes:
        going_on = [
            design for design in plan.candidates if passed_below(plan, outcomes, size, design, decided)
        ]
        if not going_on:
            continue
        wanted = {
            design: list(known_cells(plan, outcomes, size, design, decided))
            for design in dict.fromkeys(
                name for one in going_on for name in (*plan.baselines(size, one), one)
            )
        }
        order = [cell for cells in wanted.values() for cell in cells]
        blocks = list(dict.fromkeys(cell.seed for cell in order))
        order.sort(key=lambda cell: (blocks.index(cell.seed), cell.design != plan.baseline))
        found += [cell for cell in order if cell not in outcomes]
    return found


def known_cells(plan: Plan, outcomes: Outcomes, size: str, design: str, decided: Decided) -> Iterator[Cell]:
    """The runs that a design needs at a size, as far as outcomes say which they are."""
    if is_refused(plan, outcomes, design):
        return
    rates, shared = plan.rates(size, design), plan.shared[size]
    seeds = judged_seeds(plan, outcomes, size, design, decided)
    yield from (Cell(size, design, shared, seed) for seed in seeds)
    if len(rates) == 1:
        return
    yield from (Cell(size, design, rate, seed) for seed in plan.study.selection_seeds for rate in rates)
    best = best_rate(plan, outcomes, size, design)
    if best is not None and best != shared:
        yield from (Cell(size, design, best, seed) for seed in seeds)


def best_rate(plan: Plan, outcomes: Outcomes, size: str, design: str) -> str | None:
    """The rate with the lowest mean loss over the selection seeds; None while any of those runs is missing.

    A rate at which a run has failed is not chosen; where all have one, the shared rate is.
    """
    rates, shared = plan.rates(size, design), plan.shared[size]
    if len(rates) == 1:
        return shared
    means = {}
    for rate in rates:
        ended = [outcomes.get(Cell(size, design, rate, seed)) for seed in plan.study.selection_seeds]
        if None in ended:
            return None
        if all(outcome and outcome.is_finished for outcome in ended):
            means[rate] = fmean(outcome.loss for outcome in ended if outcome)
    return min(means, key=lambda rate: means[rate], default=shared)


def judged_seeds(plan: Plan, outcomes: Outcomes, size: str, design: str, decided: Decided) -> Sequence[int]:
    """Those that a design needs: the study's, or one by one until its answer is clear; the baseline's are all
    that any design needs."""
    study = plan.study
    if not study.rules.sequential:
        return study.seeds
    if design not in plan.candidates:
        going_on = [
            one
            for one in plan.candidates
            if design in plan.baselines(size, one) and passed_below(plan, outcomes, size, one, decided)
        ]
        each = [judged_seeds(plan, outcomes, size, one, decided) for one in going_on]
        return max(each, key=len, default=study.seeds_at_most[:2])
    seeds = study.seeds_at_most
    for count in range(min(2, len(seeds)), len(seeds)):
        if not has_ended(plan, outcomes, size, design, seeds[:count]):
            return seeds[:count]
        if decided(plan, outcomes, size, design, count):
            return seeds[:count]
    return seeds


def has_ended(plan: Plan, outcomes: Outcomes, size: str, design: str, seeds: Sequence[int]) -> bool:
    """Whether a design and its baselines have run with these seeds, at the shared rate and their best."""
    for one in (*plan.baselines(size, design), design):
        best = best_rate(plan, outcomes, size, one)
        if best is None:
            return False
        rates = {plan.shared[size], best}
        if any(Cell(size, one, rate, seed) not in outcomes for rate in rates for seed in seeds):
            return False
    return True


def is_complete(plan: Plan, outcomes: Outcomes, size: str, design: str, decided: Decided) -> bool:
    """Whether all runs that a design's verdict at a size needs have ended, the baseline's too."""
    if is_refused(plan, outcomes, design):
        return True
    seeds = judged_seeds(plan, outcomes, size, design, decided)
    return has_ended(plan, outcomes, size, design, seeds)


def passed_below(plan: Plan, outcomes: Outcomes, size: str, design: str, decided: Decided) -> bool:
    """Whether a design may be run at a size: it has passed the gate of every smaller one. The baseline's
    repetition, which measures the noise of each size, needs no gate."""
    if is_repeated(plan, design):
        return True
    below = plan.sizes[: plan.sizes.index(size)]
    return all(gate(plan, outcomes, one, design, decided) for one in below)


def gate(plan: Plan, outcomes: Outcomes, size: str, design: str, decided: Decided) -> bool | None:
    """Whether a design goes on from a size: its difference, each at its own best rate, is at most the rule's;
    one over budget is held against the widened baseline.

    None while runs are missing. A design that fails where the baseline does not stays behind; one that was
    refused too.
    """
    if not is_complete(plan, outcomes, size, design, decided):
        return None
    if is_refused(plan, outcomes, design):
        return False
    seeds = judged_seeds(plan, outcomes, size, design, decided)
    baseline = plan.baselines(size, design)[-1]
    rate, its_rate = (best_rate(plan, outcomes, size, one) for one in (design, baseline))
    assert rate is not None and its_rate is not None
    its, mine = with_blow_ups(
        [
            [outcomes[Cell(size, baseline, its_rate, seed)] for seed in seeds],
            [outcomes[Cell(size, design, rate, seed)] for seed in seeds],
        ]
    )
    pairs = [(ours, theirs) for ours, theirs in zip(mine, its, strict=True) if theirs.is_finished]
    if not pairs or not all(ours.is_finished for ours, _ in pairs):
        return False
    return fmean(ours.loss - theirs.loss for ours, theirs in pairs) <= plan.study.rules.gate


def is_refused(plan: Plan, outcomes: Outcomes, design: str) -> bool:
    """Whether the pre-flight check refused one of a design's runs: then the others need no try."""
    return any(cell.design == design and outcome.status == "refused" for cell, outcome in outcomes.items())


def is_repeated(plan: Plan, design: str) -> bool:
    """Whether a design is the baseline again."""
    return any(one.name == design and one.is_repeated for one in plan.designs)
