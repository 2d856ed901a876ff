"""What designs cost beside the baseline: parameters, FLOPs per token, seconds per step, memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

from training.run.reader import read_summary

from ..budget import BUDGET
from ..outcomes import Outcome

COSTS = {
    "parameters": ("parameters",),
    "flops_per_token": ("flops_per_token",),
    "step_s": ("throughput", "step_s", "p50"),
    "peak_memory_gib": ("throughput", "peak_memory_gib"),
}
"""Where a run's summary.json has them."""


@dataclass(frozen=True)
class Cost:
    """A design's cost beside the baseline's.

    Attributes:
        mine: by the names of `COSTS`, a mean over the runs; None where they do not say.
        its: the baseline's.
        step_times: (baseline's, design's) median seconds per step, of each seed.
    """

    mine: Mapping[str, float | None]
    its: Mapping[str, float | None]
    step_times: tuple[tuple[float, float], ...]

    def ratio(self, name: str) -> float | None:
        """The design's over the baseline's."""
        mine, its = self.mine[name], self.its[name]
        return mine / its if mine is not None and its else None

    @property
    def over_budget(self) -> list[str]:
        """Of what the design takes more than the budget allows."""
        return [
            name.replace("_", " ")
            for name in ("parameters", "flops_per_token")
            if (ratio := self.ratio(name)) is not None and ratio > BUDGET
        ]


def compare_costs(its: Sequence[Outcome], mine: Sequence[Outcome]) -> Cost:
    """The cost of a design's runs beside the baseline's with the same seeds."""
    summaries = [[_summary(outcome) for outcome in arm] for arm in (its, mine)]
    of_baseline, of_design = (
        {name: _mean([_at(summary, place) for summary in arm]) for name, place in COSTS.items()}
        for arm in summaries
    )
    pairs = [
        tuple(_at(summary, COSTS["step_s"]) for summary in pair) for pair in zip(*summaries, strict=True)
    ]
    times = tuple((a, b) for a, b in pairs if a and b)
    return Cost(of_design, of_baseline, times)


def wall_time_s(outcome: Outcome) -> float | None:
    """Seconds that a run took, with its validations; None where it does not say."""
    has_summary = outcome.folder is not None and (outcome.folder / "summary.json").is_file()
    return _at(_summary(outcome), ("wall_time_s",)) if has_summary else None


def _summary(outcome: Outcome) -> Mapping[str, Any]:
    return _read(outcome) if outcome.folder else {}


@cache
def _read(outcome: Outcome) -> Mapping[str, Any]:
    assert outcome.folder is not None
    return read_summary(outcome.folder)


def _at(summary: Any, place: Sequence[str]) -> Any:
    for key in place:
        summary = summary.get(key) if isinstance(summary, Mapping) else None
    return summary


def _mean(values: Sequence[Any]) -> float | None:
    known = [value for value in values if isinstance(value, int | float)]
    return fmean(known) if known and len(known) == len(values) else None
