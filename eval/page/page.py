"""The report page: one HTML file with everything about a set of runs, to open anywhere and send around."""

from collections.abc import Sequence
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from model.files import write_text

from ..evidence.comparison import Scorecard, build_scorecard
from ..evidence.results import RunRecord
from ..evidence.tables import NOTES, floor_lines, verdict_lines
from ..slices.section import slice_sections
from .blocks import Chart, Section, Sentences, Table
from .costs import costs_section
from .curves.differences import difference_section
from .curves.losses import loss_section, schedule_section
from .depth.section import depth_sections
from .forest import forest_section
from .packed import packed_charts, packed_library
from .runs import runs_section
from .scores import all_scores_section, evaluation_section, losses_section
from .settings import settings_section, shared_settings_section
from .warnings import warnings_section

HERE = Path(__file__).parent
LONG = 34
"""Characters of a line from which on the cells of its column are text, and may break into several lines."""
MOST_COLUMNS = 9
"""Of a table on paper; one with more has its cells one after the other there."""


def write_page(records: Sequence[RunRecord], out: Path, baseline: str | None = None) -> None:
    """Write the page about these runs to `out`. Raises UserError where none of them is of the baseline."""
    card = build_scorecard(records, baseline)
    write_text(out, render(sections_of(card), card.headline, verdict_lines(card)))


def sections_of(card: Scorecard) -> list[Section]:
    """Everything that the page shows about these runs, from top to bottom."""
    return [
        warnings_section(card),
        forest_section(card),
        losses_section(card),
        difference_section(card),
        loss_section(card),
        schedule_section(card),
        evaluation_section(card),
        all_scores_section(card),
        *slice_sections(card),
        *depth_sections(card),
        costs_section(card),
        settings_section(card),
        shared_settings_section(card),
        runs_section(card),
        Section("notes", "How to read this", [Sentences([*floor_lines(card), *NOTES])]),
    ]


def render(
    sections: Sequence[Section], title: str, summary: Sequence[str] = (), follows_server: bool = False
) -> str:
    """The page as HTML, with nothing outside it.

    Args:
        sections: those without blocks are left out.
        title: the one sentence to read if only one is read.
        summary: the sentences below it.
        follows_server: whether it asks its server for what has changed.
    """
    shown = [section for section in sections if section.blocks]
    charts = [block for section in shown for block in section.blocks if isinstance(block, Chart)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests |= {
        "chart": lambda block: isinstance(block, Chart),
        "table": lambda block: isinstance(block, Table),
    }
    environment.globals["kinds_of"] = _kinds_of
    return environment.get_template("template.html.j2").render(
        most_columns=MOST_COLUMNS,
        sections=shown,
        title=title,
        summary=summary,
        style=Markup((HERE / "style.css").read_text()),
        script=Markup((HERE / "script.js").read_text()),
        live=Markup((HERE / "live" / "live.js").read_text()) if follows_server else "",
        library=Markup(packed_library()) if charts else "",
        charts=Markup(packed_charts(charts)) if charts else "",
    )


def _kinds_of(rows: pd.DataFrame) -> list[Markup]:
    """The class of each column's cells: texts are set apart from numbers, but for the rows' names."""
    lines = [[line for cell in cells for line in cell.split("\n")] for _, cells in rows.items()]
    is_long = [any(len(line) > LONG for line in column) for column in lines]
    return [Markup(' class="long"' if column and number else "") for number, column in enumerate(is_long)]
