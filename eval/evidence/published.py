"""The benchmark's published results, beside runs of one's own: `python -m eval.scorecard RUN... --published`.

Nothing is ever subtracted from a published figure. They are single runs that no run of one's own is paired
with: other batches, other validation windows, perhaps other data.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from model.errors import UserError
from training.run.reader import read_recipe

from .comparison import Scorecard
from .metrics import METRICS, VAL_LOSS
from .results import RunRecord
from .tables import (
    content_of,
    format_value,
    markdown_list,
    markdown_table,
    records_of,
    row_titles,
    tidy_table,
)
from .tables import to_markdown as scorecard_markdown

FOLDER = Path(__file__).parents[1] / "published"
TABLE, OTHER_TASKS = FOLDER / "gpt2_medium_climbmix.csv", FOLDER / "other_tasks_climbmix.csv"
COLUMNS = (
    "val_loss", "wikitext_windows_ppl", "lambada_windows_ppl",
    "arc_easy_acc", "hellaswag_acc", "piqa_acc", "winogrande_acc",
)  # fmt: skip
"""What is published, by the names of the scorecard's metrics."""
FACTS = ("task", "entry", "attempt", "status")
SHOWN = [metric for name in COLUMNS for metric in METRICS if metric.name == name]
PUBLISHED_FORM = next(metric for metric in METRICS if metric.name == "published_val_loss")
WARNING = (
    "Published rows are single, unpaired runs on ClimbMix, each with its own batches and validation windows. "
    "At 124M the same table's validation losses have a pooled standard deviation of 0.0066 over seeds: "
    "differences of that size between two of its rows mean nothing. No difference to a published row is "
    "computed."
)
DIVERGED = "An entry that diverged has no numbers here, although the table gives it accuracies, at chance."
OTHER_DATA = "Trained on other data than the published rows, so that they cannot be set beside those"
SAME_DATA = (
    "Trained on the published rows' data, to be read beside them. val loss is over all of the run's own "
    "validation set; published val loss is over random windows of it, as the published one is of theirs."
)


def read_table(path: Path) -> pd.DataFrame:
    """A published table; what diverged has no numbers."""
    table = pd.read_csv(path, comment="#")
    if "status" in table:
        table.loc[table["status"] == "diverged", [*COLUMNS, "seconds"]] = float("nan")
    return table


def read_source(path: Path) -> str:
    """Where a published table is from, and its units: the comment at its beginning."""
    lines = path.read_text().splitlines()
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))


def data_of(record: RunRecord) -> str:
    """What a run was trained on, as its recipe has it."""
    try:
        section = read_recipe(record.folder).get("data") or {}
    except UserError:
        return "unknown data"
    return " ".join(
        filter(None, [section.get("source", "sample"), section.get("subset"), section.get("files")])
    )


def is_climbmix(data: str) -> bool:
    """Whether the name of a source says that it is the published runs' data."""
    return "climbmix" in data.lower()


def own_rows(card: Scorecard) -> pd.DataFrame:
    """The scorecard's rows: name, title, data, the published metrics and `PUBLISHED_FORM`, seconds."""
    values = card.scores.pivot(index="name", columns="metric", values="value")
    table = values.reindex(index=card.rows["name"], columns=[*COLUMNS, PUBLISHED_FORM.name]).reset_index()
    groups = [card.runs[card.runs["name"] == name] for name in table["name"]]
    seconds = [
        pd.Series(
            [record.summary.get("wall_time_s") for record in group["record"][group["counted"]]], dtype=float
        )
        for group in groups
    ]
    return table.assign(
        title=row_titles(card).to_list(),
        data=[", ".join(dict.fromkeys(map(data_of, group["record"]))) for group in groups],
        seconds=[of_runs.mean() for of_runs in seconds],
    )


def published_table() -> pd.DataFrame:
    """The published results as text."""
    table = read_table(TABLE)
    facts = {"entry": table["entry"], "attempt": table["attempt"]}
    diverged = table["status"] == "diverged"
    text = pd.DataFrame(facts | _figures(table))
    text[VAL_LOSS.title] = text[VAL_LOSS.title].mask(diverged, "diverged")
    return text


def other_tasks_table() -> pd.DataFrame:
    """What the benchmark's other tasks made of the same model, as text with the digits that are published."""
    table = pd.read_csv(OTHER_TASKS, comment="#", dtype=str)
    loss = table["low"].where(table["low"] == table["high"], table["low"] + " to " + table["high"])
    return pd.DataFrame({"task": table["task"], "entry": table["entry"], VAL_LOSS.title: loss})


def own_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Some of `own_rows` as text, in the published table's columns."""
    table = pd.DataFrame({"variant": rows["title"], "data": rows["data"]} | _figures(rows))
    if rows[PUBLISHED_FORM.name].notna().any():
        in_form = [format_value(value, PUBLISHED_FORM) for value in rows[PUBLISHED_FORM.name]]
        table.insert(3, PUBLISHED_FORM.title, in_form)
    return table


def _figures(table: pd.DataFrame) -> dict[str, list[str]]:
    figures = {
        metric.title: [format_value(value, metric) for value in table[metric.name]] for metric in SHOWN
    }
    return figures | {"seconds": ["-" if pd.isna(value) else f"{value:,.0f}" for value in table["seconds"]]}


def own_sections(card: Scorecard) -> list[tuple[str, str, pd.DataFrame]]:
    """The title, the sentence and the rows of the runs on ClimbMix and of those on other data."""
    rows = own_rows(card)
    same = rows["data"].map(is_climbmix)
    names = ", ".join(f"{row.title} on {row.data}" for row in rows[~same].itertuples())
    sections = [
        ("Own runs on ClimbMix", SAME_DATA, rows[same]),
        ("Own runs on other data", f"{OTHER_DATA} ({names}).", rows[~same]),
    ]
    return [section for section in sections if len(section[2])]


def to_markdown(card: Scorecard | None) -> str:
    """The scorecard, if there is one, and below it the published results and the runs in their columns."""
    parts = [scorecard_markdown(card).rstrip("\n")] if card else []
    parts.append(f"**Published results: norms and blocks**\n\n{markdown_table(published_table())}")
    for title, sentence, rows in own_sections(card) if card else ():
        parts.append(f"**{title}**\n\n{sentence}\n\n{markdown_table(own_table(rows))}")
    parts.append(f"**Published results: other tasks**\n\n{markdown_table(other_tasks_table())}")
    notes = [WARNING, DIVERGED, read_source(TABLE), read_source(OTHER_TASKS)]
    parts.append(f"**Notes on the published results**\n\n{markdown_list(notes)}")
    return "\n\n".join(parts) + "\n"


def to_csv(card: Scorecard | None) -> str:
    """Tidy, by `origin`: the scorecard's lines (run), a line per published entry and metric (published).

    A published line has no columns of a comparison.
    """
    table = read_table(TABLE)
    lines = table.melt(list(FACTS), [*COLUMNS, "seconds"], var_name="metric", ignore_index=False)
    units = {metric.name: metric.unit for metric in SHOWN} | {"seconds": "seconds"}
    others = (
        read_table(OTHER_TASKS)
        .melt(["task", "entry"], var_name="attempt")
        .drop_duplicates(["task", "entry", "value"])
    )
    others["attempt"] = others["attempt"].where(others.duplicated(["task", "entry"], keep=False))
    published = pd.concat([lines.sort_index(kind="stable"), others.assign(metric=VAL_LOSS.name)])
    published = published.rename(columns={"entry": "name"}).assign(origin="published", data="ClimbMix")
    parts = [published.assign(unit=published["metric"].map(units))]
    if card:
        data = own_rows(card).set_index("name")["data"]
        own = tidy_table(card)
        parts.insert(0, own.assign(origin="run", data=own["name"].map(data)))
    return pd.concat(parts, ignore_index=True).set_index("origin").to_csv()


def to_json(card: Scorecard | None) -> str:
    """The scorecard's content, if there is one, with `published` beside it; null for unknown."""
    published = {
        "warning": WARNING,
        "data": "ClimbMix",
        "source": read_source(TABLE),
        "rows": records_of(read_table(TABLE)),
        "other_tasks": {"source": read_source(OTHER_TASKS), "rows": records_of(read_table(OTHER_TASKS))},
    }
    content: dict[str, Any] = content_of(card) if card else {}
    if card:
        content["own_runs"] = [
            {"title": title, "note": sentence, "rows": records_of(rows)}
            for title, sentence, rows in own_sections(card)
        ]
    return json.dumps(content | {"published": published}, indent=2, allow_nan=False) + "\n"
