"""The verdicts of a study: of each design at each size, at the shared rate and each at its own best rate."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

from scipy import stats

from ...statistics.crossed import effects
from ...statistics.effect import Effect
from ...statistics.failures import rate_interval
from ...statistics.sequences import half_width
from ..outcomes import Outcome, Outcomes
from ..plan import Cell, Plan
from ..queue import best_rate, is_complete, is_refused, judged_seeds, passed_below
from ..study import Rules
from .arms import losses_by_document, with_blow_ups

At = Literal["shared rate", "best rate", "equal budget"]
POWER = 0.8


@dataclass(frozen=True)
class Verdict:
    """What a study says of a design at a size.

    Attributes:
        at: the rate that all share, each design's own best, or beside a baseline of equal budget, each at its
            own best.
        rate: the design's, by its label.
        baseline: its name, the widened one's at equal budget.
        baseline_rate: the baseline's, by its label.
        word: the verdict in a few words.
        planned: how many runs of the design there were to be.
        failed: why each run failed that did, by its seed; `baseline_failed` of the baseline's.
        effect: the difference over the seeds with which both ended; None where there is none.
        low: of the interval, corrected for all designs that are compared; `high` its upper end.
        could_show: the smallest true difference that four of five such studies show; infinite with one seed.
    """

    size: str
    design: str
    at: At
    rate: str
    baseline: str
    baseline_rate: str
    word: str
    planned: int
    failed: Mapping[int, str]
    baseline_failed: Mapping[int, str]
    effect: Effect | None
    low: float
    high: float
    could_show: float

    @property
    def failure_interval(self) -> tuple[float, float]:
        """Of the design's rate of failure, at 95 %."""
        return rate_interval(len(self.failed), self.planned)


Comparisons = Mapping[str, int]
"""By size: how many looks there were so far, this study's at that size among them."""


def decider(comparisons: Comparisons) -> Callable[[Plan, Outcomes, str, str, int], bool]:
    """When a sequential study needs no more seeds of a design."""

    def decided(plan: Plan, outcomes: Outcomes, size: str, design: str, count: int) -> bool:
        seeds = plan.study.seeds_at_most[:count]
        for at in verdicts_of(plan, size, design):
            baseline = _baseline(plan, size, design, at)
            its, mine = with_blow_ups(
                [_arm(plan, outcomes, size, one, at, seeds) for one in (baseline, design)]
            )
            if not all(outcome.is_finished for outcome in mine):
                return True  # its word is that it fails
            pairs = _pairs(its, mine)
            if not pairs[0]:
                return False
            _, low, high = _sequence(pairs, plan.study.rules, comparisons[size])
            if not _is_clear(low, high, plan.study.rules):
                return False
        return True

    return decided


def judge_size(plan: Plan, outcomes: Outcomes, size: str, comparisons: Comparisons) -> list[Verdict]:
    """The verdicts at a size on the designs whose runs have ended, in the order of the designs."""
    decided = decider(comparisons)
    ended = [
        design
        for design in plan.candidates
        if not is_refused(plan, outcomes, design)
        and passed_below(plan, outcomes, size, design, decided)
        and is_complete(plan, outcomes, size, design, decided)
    ]
    found: dict[tuple[str, At], Verdict] = {}
    for at in get_args(At):
        designs = [one for one in ended if at in verdicts_of(plan, size, one)]
        # Arms of one number of seeds beside one baseline share their noise.
        alone = plan.study.rules.sequential or at == "equal budget"
        for together in [[one] for one in designs] if alone else [designs] if designs else []:
            seeds = judged_seeds(plan, outcomes, size, together[0], decided)
            for verdict in _judge(plan, outcomes, size, together, at, seeds, comparisons[size]):
                found[verdict.design, at] = verdict
    return [found[design, at] for design in ended for at in verdicts_of(plan, size, design)]


def verdicts_of(plan: Plan, size: str, design: str) -> tuple[At, ...]:
    """Which there are of a design at a size."""
    several: tuple[At, ...] = ("best rate",) if len(plan.rates(size, design)) > 1 else ()
    over: tuple[At, ...] = ("equal budget",) if (size, design) in plan.widened else ()
    return ("shared rate", *several, *over)


def overall(verdicts: Sequence[Verdict]) -> str:
    """One word on a design at a size: it is better where it is so at the shared rate and at its best one."""
    words = list(dict.fromkeys(verdict.word.partition(" (")[0] for verdict in verdicts))
    if len(words) == 1:
        return words[0]
    return ", ".join(f"{verdict.word.partition(' (')[0]} at {whose(verdict)}" for verdict in verdicts)


def whose(verdict: Verdict) -> str:
    """Where a verdict holds, in words."""
    return "each one's best rate" if verdict.at == "best rate" else f"the {verdict.at}"


def _baseline(plan: Plan, size: str, design: str, at: At) -> str:
    return plan.baselines(size, design)[-1 if at == "equal budget" else 0]


def _rate(plan: Plan, outcomes: Outcomes, size: str, design: str, at: At) -> str:
    best = None if at == "shared rate" else best_rate(plan, outcomes, size, design)
    return best or plan.shared[size]


def _arm(
    plan: Plan, outcomes: Outcomes, size: str, design: str, at: At, seeds: Sequence[int]
) -> list[Outcome]:
    rate = _rate(plan, outcomes, size, design, at)
    return [outcomes[Cell(size, design, rate, seed)] for seed in seeds]


def _judge(
    plan: Plan,
    outcomes: Outcomes,
    size: str,
    designs: Sequence[str],
    at: At,
    seeds: Sequence[int],
    comparisons: int,
) -> list[Verdict]:
    rules, baseline = plan.study.rules, _baseline(plan, size, designs[0], at)
    its, *ours = with_blow_ups([_arm(plan, outcomes, size, one, at, seeds) for one in (baseline, *designs)])
    its_failed = _failed(its, seeds)
    # Arms that are whole share their noise; one with a failed run is compared by itself.
    there = [n for n, outcome in enumerate(its) if outcome.is_finished]
    whole = [arm for arm in ours if there and all(arm[n].is_finished for n in there)]
    pooled = (
        [effects(*losses_by_document([[arm[n] for n in there] for arm in (its, *whole)]))] if whole else []
    )
    of_whole = iter(pooled[0] if pooled else [])
    found = []
    for design, arm in zip(designs, ours, strict=True):
        pairs = _pairs(its, arm)
        if any(arm is one for one in whole):
            effect: Effect | None = next(of_whole)
        else:
            effect = effects(*losses_by_document(pairs))[0] if pairs[0] else None
        failed = _failed(arm, seeds)
        low, high, could_show = math.nan, math.nan, math.inf
        if rules.sequential and pairs[0]:
            effect, low, high = _sequence(pairs, rules, comparisons)
            could_show = (high - low) / 2 + float(stats.norm.ppf(POWER)) * effect.standard_error
        elif effect is not None:
            effect = replace(effect, comparisons=max(comparisons, effect.comparisons))
            low, high = effect.interval(rules.confidence)
            if effect.seeds > 1 and effect.is_measured:
                could_show = effect.half_width(rules.confidence) + (
                    float(stats.norm.ppf(POWER)) * effect.standard_error
                )
        if failed:
            word = f"fails in {len(failed)} of {len(seeds)}"
        elif its_failed:
            word = f"not judged: the baseline fails in {len(its_failed)} of {len(seeds)}"
        else:
            assert effect is not None
            word = _word(effect, low, high, could_show, rules)
        found.append(
            Verdict(
                size,
                design,
                at,
                _rate(plan, outcomes, size, design, at),
                baseline,
                _rate(plan, outcomes, size, baseline, at),
                word,
                len(seeds),
                failed,
                its_failed,
                effect,
                low,
                high,
                could_show,
            )
        )
    return found


def _word(effect: Effect, low: float, high: float, could_show: float, rules: Rules) -> str:
    if not effect.is_measured:
        return "not measured"
    if effect.seeds == 1:
        word = "lower" if high < 0 else "higher" if low > 0 else "no clear difference"
        return f"{word} on this validation set (one seed: the noise over seeds is not measured)"
    if high < 0 or low > 0:
        return "better" if high < 0 else "worse"
    bound = rules.equivalent_within
    inside = -bound < low and high < bound
    if inside or (not rules.sequential and effect.is_equivalent(bound, 1 - rules.confidence)):
        return f"equivalent within {bound:g}"
    return f"not shown (could have shown {could_show:.4f})"


def _is_clear(low: float, high: float, rules: Rules) -> bool:
    bound = rules.equivalent_within
    return high < 0 or low > 0 or (-bound < low and high < bound)


def _failed(arm: Sequence[Outcome], seeds: Sequence[int]) -> dict[int, str]:
    return {
        seed: outcome.reason or outcome.status
        for seed, outcome in zip(seeds, arm, strict=True)
        if not outcome.is_finished
    }


def _pairs(
    its: Sequence[Outcome], mine: Sequence[Outcome]
) -> tuple[tuple[Outcome, ...], tuple[Outcome, ...]]:
    """The baseline's runs and the design's, of the seeds with which both ended."""
    both = [n for n, pair in enumerate(zip(its, mine, strict=True)) if all(one.is_finished for one in pair)]
    return tuple(its[n] for n in both), tuple(mine[n] for n in both)


@lru_cache(maxsize=4096)
def _sequence(
    pairs: tuple[tuple[Outcome, ...], tuple[Outcome, ...]], rules: Rules, comparisons: int
) -> tuple[Effect, float, float]:
    """The difference after these seeds, with an interval that holds however often one looks."""
    losses, tokens = losses_by_document(pairs)
    (effect,) = effects(losses, tokens)
    means = losses.sum(axis=2) / tokens.sum()
    of_documents = effect.components[-1].variance if effect.documents > 1 else 0.0
    half = half_width([*(means[1] - means[0])], of_documents, (1 - rules.confidence) / comparisons)
    return effect, effect.estimate - half, effect.estimate + half
