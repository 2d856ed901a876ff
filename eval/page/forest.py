"""The report's first chart: each design's difference to the baseline, with its interval."""

from html import escape

import pandas as pd
from plotly import graph_objects as go

from ..evidence.comparison import Scorecard
from ..evidence.verdicts import format_interval
from .blocks import Chart, Section, Sentences
from .runs import design_colours

ROW = 66
"""CSS pixels of a design: its name, its interval in words, the line."""
MOST_WIDER = 4.0
"""How much farther than the median of all ends one is drawn: two seeds leave some that dwarf the others."""
AROUND = 92
"""CSS pixels above the first and below the last."""


def forest_section(card: Scorecard) -> Section:
    """The differences by the yardstick as a chart; without blocks where none has an interval."""
    title = f"Difference to {card.baseline}"
    scores = compared(card)
    if scores.empty:
        return Section("forest", title, [])
    cut = [str(name) for name, is_cut in _is_cut(scores).items() if is_cut]
    note = (
        f"Dot: the difference in {_unit(card)}; line: its 95 % interval, solid over seeds, dashed over the "
        "documents of one seed, which leaves out what another seed would change."
        + (f" Longer than the chart, which “show all” shows: {', '.join(cut)}." if cut else "")
    )
    return Section("forest", title, [forest_chart(card, scores), Sentences([note])])


def compared(card: Scorecard) -> pd.DataFrame:
    """The scores by the yardstick of the designs that have an interval, by name, in the scorecard's order."""
    scores = card.scores[card.scores["metric"] == card.yardstick.name].set_index("name")
    return scores.reindex(card.rows["name"]).dropna(subset="low")


def forest_chart(card: Scorecard, scores: pd.DataFrame) -> Chart:
    """A line per design, from top to bottom; the baseline is the line at zero."""
    colours = design_colours(card)
    reach = 1.1 * float(_ends(scores)[~_is_cut(scores)].max()) or 1.0
    figure = go.Figure()
    words = []
    for place, (name, score) in enumerate(scores.iterrows()):
        said = f"{score['difference']:+.4f} {format_interval(score, 4)}"
        words.append(f"{name} {said}")
        look = {
            "name": escape(str(name)),
            "showlegend": False,
            "hovertemplate": f"{escape(str(name))}<br>{said}<extra></extra>",
        }
        dash = "solid" if "seeds" in score["interval"] else "dash"
        colour = colours[str(name)]
        figure.add_scatter(
            x=[score["low"], score["high"]], y=[place, place], mode="lines",
            line={"color": colour, "width": 3, "dash": dash}, **look,
        )  # fmt: skip
        figure.add_scatter(
            x=[score["difference"]], y=[place], mode="markers", marker={"color": colour, "size": 12}, **look
        )
        figure.add_annotation(
            x=0, y=place, xref="paper", xanchor="left", yanchor="bottom", yshift=8, align="left",
            bgcolor="var(--card)",
            text=f"<b>{escape(str(name))}</b><br>{said}", showarrow=False,
        )  # fmt: skip
    for at, text, anchor in ((-0.02, "← better", "right"), (0.02, "worse →", "left")):
        figure.add_annotation(
            x=at * reach, y=1, yref="paper", xanchor=anchor, yanchor="bottom", showarrow=False, text=text,
            font={"color": "var(--soft)"},
        )  # fmt: skip
    figure.update_layout(
        hovermode="closest",
        margin={"t": 26},
        xaxis={
            "title": f"{_unit(card)}, 0 is {escape(card.baseline)}", "range": [-reach, reach],
            "zeroline": True, "nticks": 7, "fixedrange": not _is_cut(scores).any(),
        },
        yaxis={"range": [len(scores) - 0.6, -0.95], "visible": False, "fixedrange": True},
    )  # fmt: skip
    return Chart(
        "forest",
        f"Difference in validation loss to {card.baseline}, with 95 % intervals",
        figure,
        about=f"Difference to {card.baseline} in {_unit(card)}, below zero is better: "
        + "; ".join(words)
        + ".",
        height=ROW * len(scores) + AROUND,
    )


def _ends(scores: pd.DataFrame) -> pd.Series:
    """How far from zero each interval reaches."""
    return scores[["low", "high"]].abs().max(axis="columns")


def _is_cut(scores: pd.DataFrame) -> pd.Series:
    """Whether an interval is so long that showing all of it would leave nothing to see of the others."""
    return _ends(scores) > MOST_WIDER * _ends(scores).median()


def _unit(card: Scorecard) -> str:
    return card.yardstick.unit.replace("/", " per ")
