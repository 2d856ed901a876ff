"""What a study has found so far: each design at each size, with its verdicts, its cost and its speed-up."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ...statistics.crossed import effects
from ...statistics.effect import Effect
from ..budget import flops_of_run
from ..outcomes import Outcome, Outcomes
from ..plan import Cell, Plan
from ..queue import (
    Decided,
    best_rate,
    gate,
    has_ended,
    is_complete,
    is_refused,
    is_repeated,
    judged_seeds,
    known_cells,
    passed_below,
)
from .arms import losses_by_document, with_blow_ups
from .costs import Cost, compare_costs
from .projection import BaselineSize, Estimate, speed_up
from .sequential import Comparisons, decider
from .verdicts import Verdict, judge_size

State = Literal["judged", "under way", "refused", "stopped", "waiting"]


@dataclass(frozen=True)
class Row:
    """A design at a size.

    Attributes:
        state: `stopped` at the gate of a smaller size, `waiting` for it, or how far its own runs are.
        note: the reason, or how many of its runs have ended.
        verdicts: at the shared rate, and at each one's own best where there are several rates.
        cost: beside the baseline's, at the last of these rates; None before its runs have ended.
        speed_up: there; None where it cannot be said.
        gate: whether it goes on; None while that is open.
    """

    size: str
    design: str
    state: State
    note: str = ""
    verdicts: tuple[Verdict, ...] = ()
    cost: Cost | None = None
    speed_up: Estimate | None = None
    gate: bool | None = None

    @property
    def last(self) -> Verdict | None:
        """What projection and speed-up go by: beside the plain baseline, each at its own best rate."""
        return next((one for one in reversed(self.verdicts) if one.at != "equal budget"), None)


@dataclass(frozen=True)
class Part:
    """What a part of a composite adds at a size, in nats per token: alone, and to all the others."""

    size: str
    name: str
    alone: Effect | None
    to_the_others: Effect | None


class Results:
    """A study's results, from its plan and its runs' outcomes.

    Args:
        plan: of the study.
        outcomes: of its runs so far.
        comparisons: that its intervals are corrected for.
    """

    def __init__(self, plan: Plan, outcomes: Outcomes, comparisons: Comparisons) -> None:
        self.plan, self.outcomes, self.comparisons = plan, outcomes, comparisons
        self.decided: Decided = decider(comparisons)
        self.verdicts = {size: judge_size(plan, outcomes, size, comparisons) for size in plan.sizes}
        self.rows = [self._row(size, design) for size in plan.sizes for design in plan.candidates]

    def row(self, size: str, design: str) -> Row:
        """Of a design at a size."""
        return next(row for row in self.rows if (row.size, row.design) == (size, design))

    def is_settled(self, size: str) -> bool:
        """Whether nothing is open at a size: its verdicts stay as they are."""
        return all(row.state in ("judged", "refused", "stopped") for row in self.rows if row.size == size)

    @property
    def is_done(self) -> bool:
        """Whether nothing is open at all."""
        return all(self.is_settled(size) for size in self.plan.sizes)

    def baseline(self, size: str, row: Row | None = None) -> list[Outcome]:
        """The baseline's judged runs that have ended, at the rate of a row's last verdict, or its best."""
        verdict = row.last if row else None
        rate = (
            verdict.baseline_rate
            if verdict
            else best_rate(self.plan, self.outcomes, size, self.plan.baseline)
        )
        cells = [
            Cell(size, self.plan.baseline, rate or self.plan.shared[size], seed) for seed in self._seeds(size)
        ]
        (marked,) = with_blow_ups([[self.outcomes[cell] for cell in cells if cell in self.outcomes]])
        return [outcome for outcome in marked if outcome.is_finished]

    def _seeds(self, size: str) -> Sequence[int]:
        """The baseline's judged seeds at a size."""
        return judged_seeds(self.plan, self.outcomes, size, self.plan.baseline, self.decided)

    def parts(self) -> Iterator[Part]:
        """What each part of a composite adds, at each size where its designs have been judged."""
        names = tuple(self.plan.study.composite)
        if len(names) < 2:
            return
        for size in self.plan.sizes:
            for name in names:
                others = (
                    f"whole-{name}" if len(names) > 2 else f"+{next(one for one in names if one != name)}"
                )
                yield Part(
                    size,
                    name,
                    self._between(size, self.plan.baseline, f"+{name}"),
                    self._between(size, others, "whole"),
                )

    def _between(self, size: str, one: str, other: str) -> Effect | None:
        """The second design minus the first, at the shared rate; None unless all their runs ended well."""
        arms = []
        for design in (one, other):
            if design != self.plan.baseline and self.row(size, design).state != "judged":
                return None
            seeds = judged_seeds(self.plan, self.outcomes, size, design, self.decided)
            arms.append([self.outcomes[Cell(size, design, self.plan.shared[size], seed)] for seed in seeds])
        count = min(map(len, arms))
        arms = with_blow_ups([arm[:count] for arm in arms])
        if not all(outcome.is_finished for arm in arms for outcome in arm):
            return None
        return replace(effects(*losses_by_document(arms))[0], comparisons=self.comparisons[size])

    def _row(self, size: str, design: str) -> Row:
        plan, outcomes = self.plan, self.outcomes
        if is_refused(plan, outcomes, design):
            reason = next(
                outcome.reason
                for cell, outcome in outcomes.items()
                if cell.design == design and outcome.status == "refused"
            )
            return Row(size, design, "refused", reason, gate=False)
        below_it = () if is_repeated(plan, design) else plan.sizes[: plan.sizes.index(size)]
        for below in below_it:
            if (passed := gate(plan, outcomes, below, design, self.decided)) is not True:
                if passed is None:
                    return Row(size, design, "waiting", f"for the gate of size {below}")
                return Row(size, design, "stopped", f"at the gate of size {below}", gate=False)
        assert passed_below(plan, outcomes, size, design, self.decided)
        if not is_complete(plan, outcomes, size, design, self.decided):
            known = list(known_cells(plan, outcomes, size, design, self.decided))
            ended = sum(cell in outcomes for cell in known)
            return Row(size, design, "under way", f"{ended} of {len(known)} runs")
        verdicts = tuple(verdict for verdict in self.verdicts[size] if verdict.design == design)
        its, mine = self._finished(Row(size, design, "judged", verdicts=verdicts).last)
        row = Row(
            size,
            design,
            "judged",
            "",
            verdicts,
            compare_costs(its, mine) if mine else None,
            gate=gate(plan, outcomes, size, design, self.decided),
        )
        return replace(row, speed_up=self._speed_up(row))

    def _finished(self, verdict: Verdict | None) -> tuple[list[Outcome], list[Outcome]]:
        """The baseline's runs and the design's that a verdict's difference is over."""
        assert verdict is not None
        failed = verdict.failed.keys() | verdict.baseline_failed.keys()
        seeds = [seed for seed in self.plan.study.seeds_at_most[: verdict.planned] if seed not in failed]
        pairs = ((self.plan.baseline, verdict.baseline_rate), (verdict.design, verdict.rate))
        its, mine = (
            [self.outcomes[Cell(verdict.size, design, rate, seed)] for seed in seeds]
            for design, rate in pairs
        )
        return its, mine

    def _speed_up(self, row: Row) -> Estimate | None:
        verdict = row.last
        if verdict is None or verdict.effect is None or row.cost is None or verdict.failed:
            return None
        ladder = self.ladder(row)
        if len(ladder) < 2:
            return None
        return speed_up(
            ladder,
            self.flops(row.size),
            verdict.effect,
            row.cost.step_times,
            self.plan.study.rules.confidence,
        )

    def ladder(self, row: Row) -> list[BaselineSize]:
        """The baseline over the sizes at which all its runs have ended, at its best rate of each, or at that
        of a row's last verdict. A size whose rates are still tried would bring its loss at another rate."""
        plan, outcomes = self.plan, self.outcomes
        return [
            BaselineSize(self.flops(size), tuple(outcome.loss for outcome in found))
            for size in plan.sizes
            if has_ended(plan, outcomes, size, plan.baseline, self._seeds(size))
            and (found := self.baseline(size, row if size == row.size else None))
        ]

    def flops(self, size: str) -> float:
        """Of a run of the baseline at a size."""
        trial = self.plan.trials[size, self.plan.baseline, self.plan.shared[size]]
        return flops_of_run(trial)


def points(results: Results, design: str, sizes: Sequence[str]) -> list[tuple[float, Effect]]:
    """FLOPs and difference of a design at sizes where it was judged without a failure."""
    found = []
    for size in sizes:
        verdict = results.row(size, design).last
        if verdict and verdict.effect and not verdict.failed and not verdict.baseline_failed:
            found.append((results.flops(size), verdict.effect))
    return found
