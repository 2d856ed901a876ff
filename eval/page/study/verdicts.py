"""The verdicts of a study: a table and a forest chart for each size."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd
from plotly import graph_objects as go

from ...studies.findings.pairing import At
from ...studies.findings.projection import Estimate
from ...studies.findings.reading import StudyRecord, StudySize
from ...studies.findings.results import Row
from ...studies.findings.tables import TITLES, verdict_cells
from ...studies.findings.verdicts import Verdict
from ..blocks import Chart, Section, Table
from .words import estimated

SYMBOLS: dict[At, tuple[str, str]] = {
    "shared rate": ("circle", "●"),
    "best rate": ("diamond", "◆"),
    "equal budget": ("square", "■"),
}
"""Of a forest's marks, as Plotly calls them and as a text."""
WHERE: dict[At, str] = {
    "shared rate": "the shared rate",
    "best rate": "each one's best rate",
    "equal budget": "equal budget",
}
APART = 0.24
"""Of a row's height: how far the marks of its verdicts lie from each other."""
ROW_PX, FRAME_PX = 54, 120


def verdict_section(record: StudyRecord, colours: Mapping[str, str]) -> Section:
    """Each size's verdicts, those of the headline first, then the largest."""
    blocks: list[Chart | Table] = []
    sizes = reversed([*enumerate(record.sizes)])
    for number, size in sorted(sizes, key=lambda one: one[1] is not record.largest):
        rows = record.rows_of(size.size)
        if chart := forest(record, size, rows, colours, f"study-forest-{number}"):
            blocks.append(chart)
        blocks.append(verdict_table(record, size, rows))
    return Section("study-verdicts", "Verdicts", [*blocks])


def verdict_table(record: StudyRecord, size: StudySize, rows: Sequence[Row]) -> Table:
    """A line for each verdict of a size, and for each design that has none yet."""
    cells = [verdict_cells(row, verdict) for row in rows for verdict in row.verdicts or (None,)]
    notes = [
        f"Differences to {record.baseline} in nats per token; below zero is better. Intervals are corrected "
        f"for {record.comparisons[size.size]} look(s)."
    ]
    if not size.is_settled:
        notes.append("Not all runs have ended.")
    if any(verdict.at == "best rate" for row in rows for verdict in row.verdicts):
        notes.append("A design is better where it is so at the shared rate and each at its own best.")
    return Table(pd.DataFrame(cells, columns=list(TITLES)), f"Verdicts at size {size.size}", " ".join(notes))


def forest(
    record: StudyRecord, size: StudySize, rows: Sequence[Row], colours: Mapping[str, str], name: str
) -> Chart | None:
    """Differences with their intervals, a line for each design; None where nothing is judged."""
    rows = [row for row in rows if any(verdict.effect for verdict in row.verdicts)]
    # What the noise looks like stands below what it is the measure of.
    rows = sorted(rows, key=lambda row: record.is_noise(row.design))
    if not rows:
        return None
    figure = go.Figure()
    kinds = [at for at in SYMBOLS if any(one.at == at for row in rows for one in row.verdicts)]
    for at in kinds:  # the legend's
        key = {"symbol": SYMBOLS[at][0], "color": "var(--soft)"}
        figure.add_scatter(x=[None], y=[None], mode="markers", legendgroup=_kind(at), marker=key)
    for number, row in enumerate(rows):
        for verdict in row.verdicts:
            if verdict.effect is not None:
                y = -number - APART * (kinds.index(verdict.at) - (len(kinds) - 1) / 2)
                figure.add_trace(_mark(verdict, verdict.effect.estimate, y, colours[row.design]))
    bound = record.rules.equivalent_within
    figure.add_vrect(x0=-bound, x1=bound, fillcolor="var(--mark)", line_width=0, layer="below")
    figure.add_vline(x=0, line={"color": "var(--soft)", "width": 1})
    names = [
        escape(row.design) + ("<br>(noise floor)" if record.is_noise(row.design) else "") for row in rows
    ]
    figure.update_layout(
        hovermode="closest",
        xaxis_title="nats per token",
        yaxis={
            "tickvals": [-number for number in range(len(rows))],
            "ticktext": names,
            "zeroline": False,
            "showgrid": False,
        },
    )
    about = (
        f"{len(rows)} designs at size {size.size}, each with the difference of its validation loss to "
        f"{record.baseline} and the interval; the band is +-{bound:g} nats per token, which counts as none."
    )
    title = f"Difference to {record.baseline} at size {size.size}, below zero is better"
    return Chart(name, title, figure, about, height=FRAME_PX + ROW_PX * len(rows))


def _mark(verdict: Verdict, estimate: float, y: float, colour: str) -> go.Scatter:
    bars = None
    found = estimated(Estimate(estimate, verdict.low, verdict.high))
    of = f"{escape(verdict.design)} at {WHERE[verdict.at]}, {escape(verdict.rate)}"
    if math.isfinite(verdict.high - verdict.low):
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [max(verdict.high - estimate, 0.0)],
            "arrayminus": [max(estimate - verdict.low, 0.0)],
            "color": colour,
            "thickness": 2,
            "width": 0,
        }
    return go.Scatter(
        x=[estimate],
        y=[y],
        mode="markers",
        name=escape(verdict.design),
        legendgroup=_kind(verdict.at),
        showlegend=False,
        marker={"symbol": SYMBOLS[verdict.at][0], "size": 10, "color": colour},
        error_x=bars,
        customdata=[f"{of}<br>{found}<br>{escape(verdict.word)}"],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _kind(at: At) -> str:
    return f"{SYMBOLS[at][1]} at {WHERE[at]}"
