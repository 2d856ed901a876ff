"""Differences over the sizes of a study, with what smaller ones foretold, and its gates."""

import math
from collections.abc import Mapping
from html import escape

import pandas as pd
from plotly import graph_objects as go

from ...studies.findings.foretelling import TARGET, Foretold
from ...studies.findings.projection import Estimate
from ...studies.findings.reading import StudyRecord
from ...studies.findings.tables import foretold_sentence
from ..blocks import Chart, Section, Sentences, Table
from .words import estimated

APART = 0.015
"""In decades of FLOPs: how far the designs' marks lie from each other."""


def size_section(record: StudyRecord, colours: Mapping[str, str]) -> Section:
    """The differences over FLOPs, and each projection beside what came."""
    blocks: list[Chart | Sentences] = []
    if chart := size_chart(record, colours):
        blocks.append(chart)
    if record.foretold:
        blocks.append(Sentences([*map(foretold_sentence, record.foretold)], "Foretold, and what came"))
    return Section("study-sizes", "Over the sizes", [*blocks])


def size_chart(record: StudyRecord, colours: Mapping[str, str]) -> Chart | None:
    """Differences, each at its own best rate, over the FLOPs of a run of the baseline; projections are open
    marks. None with fewer than two sizes to show."""
    flops = {one.size: one.flops for one in record.sizes}
    if record.target_flops is not None:
        flops[TARGET] = record.target_flops
    figure, shown = go.Figure(), set()
    for number, design in enumerate(record.designs):
        shift = 10 ** (APART * (number - (len(record.designs) - 1) / 2))
        found: list[tuple[str, Estimate]] = []
        for size in record.sizes:
            verdict = record.row(size.size, design).last
            if verdict and verdict.effect and not verdict.failed and not verdict.baseline_failed:
                found.append((size.size, Estimate(verdict.effect.estimate, verdict.low, verdict.high)))
        ours = [one for one in record.foretold if one.design == design and one.size in flops]
        if not found and not ours:
            continue
        shown |= {size for size, _ in found} | {one.size for one in ours}
        figure.add_trace(_measured(design, found, flops, shift, colours[design]))
        if ours:
            figure.add_trace(_projected(design, ours, flops, shift, colours[design]))
    if len(shown) < 2:
        return None
    figure.add_hline(y=0, line={"color": "var(--soft)", "width": 1})
    figure.update_layout(
        hovermode="closest",
        xaxis={
            "title": f"FLOPs of a run of {escape(record.baseline)}",
            "type": "log",
            "tickvals": [flops[size] for size in flops if size in shown],
            "ticktext": [f"{escape(size)}<br>{flops[size]:.2g}" for size in flops if size in shown],
        },
        yaxis_title="difference, nats per token",
    )
    names = ", ".join(f"{size} {flops[size]:.2g}" for size in flops if size in shown)
    return Chart(
        "study-sizes",
        f"Difference to {record.baseline} over the size of a run, each at its best rate",
        figure,
        f"A line for each design with intervals, at {names} FLOPs; open marks are projections, written down "
        "before the size was trained.",
    )


def gate_section(record: StudyRecord) -> Section:
    """Which designs went on from each size but the last."""
    sizes = [one.size for one in record.sizes[:-1]]
    if not sizes:
        return Section("study-gates", "Gates", [])
    designs = [design for design in record.designs if not record.is_noise(design)]
    cells = [[design, *(_gate(record, size, design) for size in sizes)] for design in designs]
    note = (
        "A design goes on where its difference, each at its own best rate, is at most "
        f"{record.rules.gate:+g} nats per token, and none of its runs failed."
    )
    table = Table(pd.DataFrame(cells, columns=["design", *(f"from {size}" for size in sizes)]), note=note)
    return Section("study-gates", "Gates", [table])


def _gate(record: StudyRecord, size: str, design: str) -> str:
    row = record.row(size, design)
    if row.state != "judged" or row.gate is None:
        return "not open yet" if row.state in ("under way", "waiting") else row.state
    verdict = row.verdicts[-1]
    found = f" ({verdict.effect.estimate:+.4f})" if verdict.effect else ""
    return f"{'goes on' if row.gate else 'stays behind'}{found}"


def _measured(
    design: str, found: list[tuple[str, Estimate]], flops: Mapping[str, float], shift: float, colour: str
) -> go.Scatter:
    return go.Scatter(
        x=[shift * flops[size] for size, _ in found],
        y=[estimate.value for _, estimate in found],
        mode="lines+markers",
        name=escape(design),
        legendgroup=design,
        line={"color": colour, "width": 2},
        marker={"color": colour, "size": 8},
        error_y=_bars([estimate for _, estimate in found], colour),
        customdata=[f"size {escape(size)}: {estimated(estimate)}" for size, estimate in found],
        hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
    )


def _projected(
    design: str, ours: list[Foretold], flops: Mapping[str, float], shift: float, colour: str
) -> go.Scatter:
    estimates = [one.foretold for one in ours]
    return go.Scatter(
        x=[shift**2 * flops[one.size] * 10**APART for one in ours],
        y=[estimate.value for estimate in estimates],
        mode="markers",
        name=f"{escape(design)}, foretold",
        legendgroup=design,
        marker={"color": colour, "size": 9, "symbol": "diamond-open"},
        error_y=_bars(estimates, colour, 1),
        customdata=[f"size {escape(one.size)}, foretold: {estimated(one.foretold)}" for one in ours],
        hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
    )


def _bars(estimates: list[Estimate], colour: str, thickness: float = 2) -> dict[str, object]:
    def reach(ends: list[float]) -> list[float]:
        return [end if math.isfinite(end) else 0.0 for end in ends]

    return {
        "type": "data",
        "symmetric": False,
        "array": reach([one.high - one.value for one in estimates]),
        "arrayminus": reach([one.value - one.low for one in estimates]),
        "color": colour,
        "thickness": thickness,
        "width": 3,
    }
