"""The report's section on slices: by kind a chart of the differences and a table of all buckets."""

import math
from html import escape

import pandas as pd
from plotly import graph_objects as go

from ..evidence.comparison import Scorecard
from ..page.blocks import Chart, Section, Sentences, Table
from ..page.runs import design_colours
from .comparison import BUCKET, TITLES, bucket_title, compare_slices

AXES = {"position": "position", "frequency": "occurrences of the token", "length": "tokens"}
"""By kind, what a bucket holds in few words."""
ABOUT = (
    "Every validation token is in one row of each table; losses are in nats per token.",
    "Brackets and lines are 95 % intervals, one bucket at a time: of twenty, one misses by chance. Filled "
    "marks: over seeds; hollow ones: over the documents of one seed, which another seed may leave.",
)


def slice_sections(card: Scorecard) -> list[Section]:
    """A section for each tokenizer that has runs with slices, in its own nats."""
    colours = design_colours(card)
    several = card.runs["tokenizer"].nunique() > 1
    sections = []
    for number, (tokenizer, rows) in enumerate(compare_slices(card).items(), start=1):
        section_id = f"slices-{number}"
        blocks: list[Chart | Table | Sentences] = [Sentences(list(ABOUT))]
        for kind, title in TITLES.items():
            of_kind = rows[rows["kind"] == kind]
            if of_kind["difference"].notna().any():
                blocks.append(_chart(f"{section_id}-{kind}", kind, of_kind, colours))
            blocks.append(Table(_table(of_kind), f"By {title}"))
        suffix = f", tokenizer {tokenizer}" if several else ""
        title = f"Validation loss in slices, against {card.baseline} (negative is better){suffix}"
        sections.append(Section(section_id, title, blocks))
    return sections


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    """As text a row per bucket; a variant's column has its differences, or its losses where it has none."""
    columns: dict[str, pd.Series] = {}
    for name, of_name in rows.groupby("name", sort=False):
        of_name = of_name.set_index(BUCKET)
        columns.setdefault("tokens", of_name["tokens"].map("{:,}".format))
        if of_name["difference"].notna().any():
            columns[str(name)] = of_name.apply(_difference, axis=1)
        else:
            columns[f"{name}, loss"] = of_name["loss"].map("{:.4f}".format)
    table = pd.DataFrame(columns)
    table.insert(0, "values", [bucket_title(low, high) for low, high in table.index])
    return table


def _difference(row: pd.Series) -> str:
    text = f"{row['difference']:+.4f}"
    has_interval = not math.isnan(row["interval_low"])
    return f"{text} [{row['interval_low']:+.4f}, {row['interval_high']:+.4f}]" if has_interval else text


def _chart(name: str, kind: str, rows: pd.DataFrame, colours: dict[str, str]) -> Chart:
    """The differences of each variant, side by side above each bucket."""
    compared = rows[rows["difference"].notna()]
    figure = go.Figure()
    for variant, of_variant in compared.groupby("name", sort=False):
        colour, value = colours[str(variant)], of_variant["difference"]
        above, below = of_variant["interval_high"] - value, value - of_variant["interval_low"]
        figure.add_trace(
            go.Scatter(
                x=[bucket_title(row.low, row.high) for row in of_variant.itertuples()],
                y=_rounded(value),
                error_y={
                    "array": _rounded(above),
                    "arrayminus": _rounded(below),
                    "color": colour,
                    "width": 0,
                },
                name=escape(str(variant)),
                mode="markers",
                marker={
                    "color": colour,
                    "size": 7,
                    "symbol": ["circle" if "seeds" in over else "circle-open" for over in of_variant["over"]],
                },
                text=[_difference(row) for _, row in of_variant.iterrows()],
                hovertemplate="%{text}",
            )
        )
    buckets = [
        bucket_title(low, high) for low, high in rows[BUCKET].drop_duplicates().itertuples(index=False)
    ]
    figure.update_xaxes(type="category", title=AXES[kind], categoryorder="array", categoryarray=buckets)
    figure.update_yaxes(title="nats per token", zeroline=True)
    figure.update_layout(scattermode="group")
    about = (
        f"Differences in validation loss by {TITLES[kind]} of {', '.join(compared['name'].unique())}: from "
        f"{compared['difference'].min():+.4f} to {compared['difference'].max():+.4f}."
    )
    return Chart(name, f"Difference by {TITLES[kind]} (nats per token)", figure, about, height=320)


def _rounded(values: pd.Series) -> list[float | None]:
    return [None if math.isnan(value) else float(f"{value:.4g}") for value in values]
