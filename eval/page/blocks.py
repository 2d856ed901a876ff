"""What a page consists of: sections of charts, tables and sentences, which the template draws alike."""

from dataclasses import dataclass, field

import pandas as pd
from plotly import graph_objects as go


@dataclass(frozen=True)
class Chart:
    """A chart that the reader can zoom.

    Attributes:
        name: of letters, digits and `-`; no two charts of a page share one.
        title: says what is shown and in which unit.
        figure: the traces. Colours, fonts, margins and the size come from the page, which knows its theme and
            width. A trace names its colour as `var(--c1)`, a name of the page's style sheet. Panels that are
            one below the other in a `layout.grid` stand side by side where the page is wide enough.
        about: a sentence that says what is to be seen, for readers who cannot see it.
        axes: other quantities for the horizontal axis, by their title, such as "hours". Each holds an array
            of x for each trace, in the figure's order. The first is what the figure is drawn with.
        logs: which axes can be switched to a logarithmic scale: "x", "y" or both, as a text.
        height: CSS pixels.
    """

    name: str
    title: str
    figure: go.Figure
    about: str
    axes: dict[str, list[list[float]]] = field(default_factory=dict)
    logs: str = ""
    height: int = 380


@dataclass(frozen=True)
class Table:
    """A table of texts; its first column names the rows, and stays in sight where the others are scrolled.

    Attributes:
        rows: cells as the reader sees them, with line breaks; the columns' names are the head.
        title: above it; empty for none.
        note: below it.
    """

    rows: pd.DataFrame
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Sentences:
    """Sentences, one below the other."""

    lines: list[str]
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page, which its list of contents names.

    Attributes:
        id: of letters, digits and `-`: the page's address ends with it.
        title: a few words.
        blocks: from top to bottom; a section without any is left out.
        kind: "plain"; "warning", which stands out; or "folded", which a click or Enter opens.
    """

    id: str
    title: str
    blocks: list[Chart | Table | Sentences]
    kind: str = "plain"
