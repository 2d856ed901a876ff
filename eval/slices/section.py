"""The report's section on slices: by kind a table of all buckets and a chart of the differences."""

import math
from typing import Any

import pandas as pd

from ..evidence.charts import Mark, Style, interval_chart
from ..evidence.comparison import Scorecard
from .comparison import BUCKET, TITLES, bucket_title, compare_slices

OVER_DOCUMENTS = "4 3"
"""SVG dashes of an interval that another seed may leave, as everywhere in the report."""


def slice_sections(card: Scorecard, colours: dict[str, int]) -> list[dict[str, Any]]:
    """A section for each tokenizer that has runs with slices, in its own nats; `colours` are by row name."""
    compared = compare_slices(card)
    sections = []
    for tokenizer, rows in compared.items():
        suffix = f", tokenizer {tokenizer}" if card.runs["tokenizer"].nunique() > 1 else ""
        of_kinds = {kind: rows[rows["kind"] == kind] for kind in TITLES}
        charts = {kind: _chart(kind, of_kind, colours) for kind, of_kind in of_kinds.items()}
        of_first = next((chart for chart in charts.values() if chart), None)
        section = {
            "title": f"Validation loss in slices, against {card.baseline} (negative is better){suffix}",
            "legend": of_first["curves"] if of_first else [],
            "kinds": [
                {"title": TITLES[kind], "table": _table(of_kind), "chart": charts[kind]}
                for kind, of_kind in of_kinds.items()
            ],
        }
        sections.append(section)
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


def _chart(kind: str, rows: pd.DataFrame, colours: dict[str, int]) -> dict[str, Any] | None:
    """The differences of each variant above the buckets' lowest values; None where there are none."""
    compared = rows[rows["difference"].notna()]
    if compared.empty:
        return None
    buckets = {low: number for number, low in enumerate(rows["low"].drop_duplicates())}
    marks = []
    for name, of_name in compared.groupby("name", sort=False):
        dashes = "" if of_name["over"].str.contains("seeds").any() else OVER_DOCUMENTS
        of_buckets = [
            Mark(buckets[row.low], row.difference, row.interval_low, row.interval_high)
            for row in of_name.itertuples()
        ]
        marks.append((Style(str(name), colours[str(name)], dashes), of_buckets))
    labels = [f"{low:,}" for low in buckets]
    return interval_chart(TITLES[kind], "nats per token", labels, marks)
