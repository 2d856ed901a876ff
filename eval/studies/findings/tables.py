"""A study's results for a terminal."""

import math
from collections.abc import Iterator, Sequence

from ...statistics.effect import Effect
from ..queue import best_rate
from ..registration import Registration
from .foretelling import Foretold
from .projection import LARGEST, Estimate
from .results import Results, Row
from .verdicts import Verdict

COST_TITLES = {
    "parameters": "parameters",
    "flops_per_token": "FLOPs per token",
    "step_s": "step time",
    "peak_memory_gib": "memory",
}
TITLES = ("design", "rate", "difference", "interval", "could show", "verdict", "speed-up")
FEW_RATES = 3
"""With fewer, each design's best rate may lie outside what was tried."""


def describe(results: Results, foretold: Sequence[Foretold], registration: Registration | None) -> str:
    """All of it, in lines."""
    plan = results.plan
    lines = registration.sentences() if registration else ["not registered yet: no run has begun"]
    for size in plan.sizes:
        rows = [row for row in results.rows if row.size == size]
        title = f"size {size}, differences to {plan.baseline} in nats per token, below zero is better"
        lines += ["", title if results.is_settled(size) else f"{title}; not all runs have ended"]
        cells = [verdict_cells(row, verdict) for row in rows for verdict in row.verdicts or (None,)]
        lines += _columns(cells, TITLES)
        if costs := [cost_cells(row) for row in rows if row.cost]:
            lines += ["", *_columns(costs, ["design", *COST_TITLES.values()])]
        for row in rows:
            if row.cost and row.cost.over_budget:
                lines.append(f"{row.design} is over budget in {' and '.join(row.cost.over_budget)}")
        lines += dict.fromkeys(failure_sentences(rows))  # once where both verdicts are of the same runs
        lines += rate_notes(results, size)
    if parts := list(results.parts()):
        lines += ["", "what each part adds at the shared rate, in nats per token"]
        level = plan.study.rules.confidence
        cells = [
            [part.size, part.name, _effect(part.alone, level), _effect(part.to_the_others, level)]
            for part in parts
        ]
        lines += _columns(cells, ["size", "part", "alone", "to all others"])
    for one in foretold:
        lines.append(foretold_sentence(one))
    comparisons = ", ".join(f"{count} at size {size}" for size, count in results.comparisons.items())
    lines += ["", f"looks that the intervals are corrected for: {comparisons}"]
    return "\n".join(lines)


def verdict_cells(row: Row, verdict: Verdict | None) -> list[str]:
    """What `TITLES` name, of one verdict of a row, or of a row that has none yet."""
    if verdict is None:
        return [row.design, "", "", "", "", f"{row.state} {row.note}".strip(), ""]
    rate = f"{verdict.at.removesuffix(' rate')} {verdict.rate}"
    if verdict.at == "equal budget":
        rate += f" beside {verdict.baseline}"
    if verdict.rate != verdict.baseline_rate:
        rate += f" (baseline {verdict.baseline_rate})"
    difference = interval = ""
    if verdict.effect is not None:
        difference = f"{verdict.effect.estimate:+.4f}"
        if math.isfinite(verdict.high - verdict.low):
            interval = f"[{verdict.low:+.4f}, {verdict.high:+.4f}]"
    speed = _speed(row.speed_up) if verdict is row.last else ""
    could_show = f"{verdict.could_show:.4f}" if math.isfinite(verdict.could_show) else ""
    return [row.design, rate, difference, interval, could_show, verdict.word, speed]


def _speed(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    high = "more" if estimate.high >= LARGEST * 0.99 else f"{estimate.high:.3f}"
    value = f"over {LARGEST:g}" if estimate.value >= LARGEST * 0.99 else f"{estimate.value:.3f}"
    return f"{value} [{estimate.low:.3f}, {high}]"


def cost_cells(row: Row) -> list[str]:
    """A design and its cost beside the baseline's, in the order of `COST_TITLES`."""
    assert row.cost is not None
    cells = [row.design]
    for name in COST_TITLES:
        mine, ratio = row.cost.mine[name], row.cost.ratio(name)
        cells.append("" if mine is None else f"{mine:.4g}" if ratio is None else f"{mine:.4g} ({ratio:.3f}x)")
    return cells


def failure_sentences(rows: Sequence[Row]) -> Iterator[str]:
    """Each run that failed, with its reason, and how often a design does."""
    for row in rows:
        for verdict in row.verdicts:
            low, high = verdict.failure_interval
            where = f"{row.design} at rate {verdict.rate}"
            for seed, reason in verdict.failed.items():
                yield f"{where}, seed {seed}: {reason}"
            if verdict.failed:
                yield (
                    f"{where} fails in {len(verdict.failed)} of {verdict.planned} runs (95 % interval of the "
                    f"rate {low:.0%} to {high:.0%}); the difference is over the others"
                )
            for seed, reason in verdict.baseline_failed.items():
                yield f"{verdict.baseline} at rate {verdict.baseline_rate}, seed {seed}: {reason}"


def rate_notes(results: Results, size: str) -> Iterator[str]:
    """Where the rates that were tried are too few, or the best of them is the lowest or the highest."""
    plan = results.plan
    for design in (plan.baseline, *plan.candidates):
        rates = plan.rates(size, design)
        best = best_rate(plan, results.outcomes, size, design)
        if len(rates) == 1 or best is None:
            continue
        if len(rates) < FEW_RATES:
            yield f"{design}: best of {len(rates)} rates only; at least {FEW_RATES} make it its own best"
            continue
        peaks = {rate: plan.trials[size, design, rate].deepspeed.peak_lr for rate in rates}
        if peaks[best] in (min(peaks.values()), max(peaks.values())):
            yield f"{design}: its best rate, {best}, is the lowest or highest tried: others may be better"


def _effect(effect: Effect | None, level: float) -> str:
    if effect is None:
        return ""
    low, high = effect.interval(level)
    return f"{effect.estimate:+.4f}" + (f" [{low:+.4f}, {high:+.4f}]" if effect.is_measured else "")


def foretold_sentence(one: Foretold) -> str:
    """What was foretold, and beside it what came."""
    says = one.foretold
    text = (
        f"{one.design} at size {one.size}, from {' and '.join(one.sizes)}: {says.value:+.4f} "
        f"[{says.low:+.4f}, {says.high:+.4f}] foretold {one.time}"
    )
    if one.came is None:
        return text
    fits = "as foretold" if says.holds(one.came) else "not as foretold"
    return f"{text}; came {one.came.value:+.4f} [{one.came.low:+.4f}, {one.came.high:+.4f}], {fits}"


def _columns(rows: Sequence[Sequence[str]], titles: Sequence[str]) -> list[str]:
    widths = [max(len(row[n]) for row in (titles, *rows)) for n in range(len(titles))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (titles, *rows)
    ]
