"""The verdicts of a study: of each design at each size, at the shared rate and each at its own best rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from scipy import stats

from ...statistics.crossed import effects
from ...statistics.effect import Effect
from ...statistics.failures import rate_interval
from ..outcomes import Outcome, Outcomes
from ..plan import Plan
from ..queue import is_complete, is_refused, judged_seeds, passed_below
from ..study import Rules
from .arms import losses_by_document, with_blow_ups
from .pairing import At, arm_at, baseline_at, pairs_of, rate_at, verdicts_of
from .sequential import Comparisons, decider, running_interval

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
        p_value: two-sided, corrected likewise; None where looks were taken after each seed.
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
    p_value: float | None
    could_show: float

    @property
    def failure_interval(self) -> tuple[float, float]:
        """Of the design's rate of failure, at 95 %."""
        return rate_interval(len(self.failed), self.planned)


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
        # Arms of one number of seeds share their noise, whichever baseline they are held against.
        is_fixed = not plan.study.rules.sequential
        together = [designs] if is_fixed and at != "equal budget" and designs else [[one] for one in designs]
        for judged in together:
            seeds = judged_seeds(plan, outcomes, size, judged[0], decided)
            others = [one for one in (plan.baseline, *ended) if one not in judged]
            beside = others if is_fixed and at == "equal budget" else []
            for verdict in _judge(plan, outcomes, size, judged, at, seeds, comparisons[size], beside):
                found[verdict.design, at] = verdict
    return [found[design, at] for design in ended for at in verdicts_of(plan, size, design)]


def overall(verdicts: Sequence[Verdict]) -> str:
    """One word on a design at a size: it is better where it is so at the shared rate and at its best one."""
    words = list(dict.fromkeys(verdict.word.partition(" (")[0] for verdict in verdicts))
    if len(words) == 1:
        return words[0]
    return ", ".join(f"{verdict.word.partition(' (')[0]} at {whose(verdict)}" for verdict in verdicts)


def whose(verdict: Verdict) -> str:
    """Where a verdict holds, in words."""
    return "each one's best rate" if verdict.at == "best rate" else f"the {verdict.at}"


def _judge(
    plan: Plan,
    outcomes: Outcomes,
    size: str,
    designs: Sequence[str],
    at: At,
    seeds: Sequence[int],
    comparisons: int,
    beside: Sequence[str],
) -> list[Verdict]:
    """The verdicts on designs that are held against one baseline.

    Args:
        plan: of the study.
        outcomes: of its runs.
        size: where.
        designs: which.
        at: at which rate and beside which baseline.
        seeds: that are judged.
        comparisons: that the intervals hold for.
        beside: other arms, which are not judged here: they tell of the noise.
    """
    rules, baseline = plan.study.rules, baseline_at(plan, size, designs[0], at)
    its, *ours = with_blow_ups(
        [arm_at(plan, outcomes, size, one, at, seeds) for one in (baseline, *designs, *beside)]
    )
    its_failed = _failed(its, seeds)
    # Arms that are whole share their noise; one with a failed run is compared by itself.
    there = [n for n, outcome in enumerate(its) if outcome.is_finished]
    whole = [arm for arm in ours if there and all(arm[n].is_finished for n in there)]
    finished = [[arm[n] for n in there] for arm in (its, *whole)]
    of_whole = iter(effects(*losses_by_document(finished)) if whole else [])
    found = []
    for design, arm in zip(designs, ours, strict=False):  # those beside follow
        pairs = pairs_of(its, arm)
        if any(arm is one for one in whole):
            effect: Effect | None = next(of_whole)
        else:
            effect = effects(*losses_by_document(pairs))[0] if pairs[0] else None
        failed = _failed(arm, seeds)
        low, high, could_show = math.nan, math.nan, math.inf
        if rules.sequential and pairs[0]:
            effect, low, high = running_interval(pairs, rules, comparisons)
            could_show = (high - low) / 2 + float(stats.norm.ppf(POWER)) * effect.standard_error
        elif effect is not None:
            effect = replace(effect, comparisons=comparisons)
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
                rate_at(plan, outcomes, size, design, at),
                baseline,
                rate_at(plan, outcomes, size, baseline, at),
                word,
                len(seeds),
                failed,
                its_failed,
                effect,
                low,
                high,
                None if effect is None or rules.sequential else effect.p_value,
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


def _failed(arm: Sequence[Outcome], seeds: Sequence[int]) -> dict[int, str]:
    return {
        seed: outcome.reason or outcome.status
        for seed, outcome in zip(seeds, arm, strict=True)
        if not outcome.is_finished
    }
