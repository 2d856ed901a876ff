"""The scorecard as tables: markdown for a terminal, csv and json for programs, parts of the report page."""

import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from .comparison import Scorecard
from .grouping import PAIR_KEYS, RATES
from .metrics import VAL_BITS, VAL_LOSS, Metric
from .settings import GROUPS
from .verdicts import describe_sample, format_interval

NOTES = (
    "val loss is in nats per token, the mean over the finished runs of a variant, with their standard "
    "deviation (seed sd) where there are several; val bits/byte is the same loss for each byte of text, the "
    "ends of documents included, which compares across tokenizers; lower is better.",
    "An interval over seeds and documents speaks of new seeds and of new text; it holds for all rows of its "
    "table at once (Dunnett's limits; noise over seeds is pooled where designs are alike in it). One over "
    "the documents or items of one seed leaves seed-to-seed noise out, one over seeds alone speaks of this "
    "validation text. What a row could have shown is the smallest true difference that its noise would have "
    "shown in 80 % of such studies: a design that is not shown to differ may differ by less.",
    "Accuracy is lm-eval's acc (no length normalisation), norm its acc_norm (by the answers' bytes), ± the "
    "standard error over the items; WikiText-2 "
    "and sample document perplexity is per word. Windows ppl is per token, over windows of the whole text; "
    "published val loss is over random windows of the validation set, ± its standard error over batches: "
    "both as the benchmark publishes them.",
)


def score_table(card: Scorecard) -> pd.DataFrame:
    """The protocol's table as text: a row per variant, a column per metric that any run has."""
    table = pd.DataFrame(
        {
            "variant": row_titles(card),
            "mode": card.rows["precision"],
            "seeds": card.rows["seeds"].astype(str).where(~card.rows["given"], "-"),
        }
    )
    for metric in card.metrics:
        scores = _metric_scores(card, metric)
        if scores["value"].notna().any():
            table[metric.title] = [_format_score(score, metric) for _, score in scores.iterrows()]
        if metric is VAL_LOSS and scores["seed_sd"].notna().any():
            table["seed sd"] = scores["seed_sd"].map("{:.4f}".format, na_action="ignore")
    return table.astype(object).fillna("-")


def difference_table(card: Scorecard) -> pd.DataFrame:
    """Differences in validation loss to the baseline as text, each with its interval; empty without any."""
    table = pd.DataFrame({"variant": row_titles(card)})
    for metric in (VAL_LOSS, VAL_BITS):
        scores = _metric_scores(card, metric)
        if scores["difference"].notna().any():
            table[metric.unit] = _format_differences(scores, digits=4)
    compared = _metric_scores(card, card.yardstick)
    table["over"] = compared.apply(describe_sample, axis=1)
    shown = compared["smallest_shown"].where(compared["seeds"] > 1)
    if shown.notna().any():
        table["could have shown"] = shown.map("{:.4f}".format, na_action="ignore")
    return table[compared["difference"].notna()].astype(object).fillna("-")


def setting_table(card: Scorecard) -> pd.DataFrame:
    """The settings, beside the design, in which the rows were not trained alike, as text; empty if none."""
    trained = card.runs[~card.runs["given"]]
    keys = {**PAIR_KEYS, **RATES, **{group.name: group.title for group in GROUPS if group.kind == "rounding"}}
    rows = []
    for key, title in keys.items():
        if key.endswith("_seed"):
            continue
        by_name = {name: "; ".join(dict.fromkeys(of.map(str))) for name, of in trained.groupby("name")[key]}
        if len(set(by_name.values())) > 1:
            rows.append({"setting": title, **{name: by_name.get(name, "-") for name in card.rows["name"]}})
    return pd.DataFrame(rows)


def item_difference_table(card: Scorecard) -> pd.DataFrame:
    """Differences in accuracy to the baseline as text, points with intervals; empty without any."""
    table = pd.DataFrame({"variant": row_titles(card)})
    for metric in card.metrics:
        scores = _metric_scores(card, metric)
        if metric.unit == "percent" and scores["difference"].notna().any():
            table[metric.title.removesuffix(" %")] = _format_differences(scores, digits=2)
    return table.dropna(thresh=2).astype(object).fillna("-")


def run_table(card: Scorecard) -> pd.DataFrame:
    """How each variant was run, as text."""
    table = card.rows[
        ["tokenizer", "precision", "model", "parameters", "steps", "tokens", "skipped_steps", "status"]
    ].copy()
    for column in ("parameters", "steps", "tokens", "skipped_steps"):
        table[column] = table[column].map("{:,.0f}".format, na_action="ignore")
    table.insert(0, "variant", row_titles(card))
    titles = {"precision": "mode", "skipped_steps": "skipped steps"}
    return table.astype(object).fillna("-").rename(columns=titles)


def row_titles(card: Scorecard) -> pd.Series:
    """The rows' names, the baseline marked."""
    return card.rows["name"] + card.rows["baseline"].map({True: " (baseline)", False: ""})


def verdict_lines(card: Scorecard) -> list[str]:
    """One sentence for every row but the baseline."""
    return [f"{row.name}: {row.verdict}." for row in card.rows.itertuples() if not row.baseline]


def floor_lines(card: Scorecard) -> list[str]:
    """What a loss has to beat before it means anything, a line per tokenizer."""
    return [
        f"Floors of {tokenizer} in nats per token: "
        + ", ".join(f"{name} {loss:.3f}" for name, loss in floors.items())
        + " (uniform knows nothing, unigram the token frequencies only)."
        for tokenizer, floors in card.floors.items()
    ]


def to_markdown(card: Scorecard) -> str:
    """Text for a terminal or an issue: the headline, the tables, the verdicts, problems and notes."""
    scores = score_table(card)
    accuracies = scores[["variant", *(column for column in scores if column.endswith("%"))]]
    tables = {
        "Scores": scores.drop(columns=accuracies.columns[1:]),
        "Accuracy (± standard error)": accuracies if accuracies.shape[1] > 1 else accuracies.head(0),
        f"Validation loss against {card.baseline} (95 % intervals, negative is better)": difference_table(
            card
        ),
        f"Accuracy against {card.baseline} (points, 95 % interval over the items)": item_difference_table(
            card
        ),
        "Runs": run_table(card),
        "Not trained alike": setting_table(card),
    }
    notes = [*floor_lines(card), *NOTES]
    lists = {"Verdicts": verdict_lines(card), "Problems": card.problems, "Notes": notes}
    parts = [card.headline]
    for title, table in tables.items():
        if len(table):
            parts.append(f"**{title}**\n\n{markdown_table(table)}")
    parts += [f"**{title}**\n\n{markdown_list(lines)}" for title, lines in lists.items() if lines]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    """A table of text, its first column to the left and the others to the right."""
    cells = table.map(lambda cell: cell.replace("|", "\\|").replace("\n", " "))
    alignment = ["left", *["right"] * (table.shape[1] - 1)]
    return cells.to_markdown(index=False, disable_numparse=True, colalign=alignment)


def markdown_list(lines: Iterable[str]) -> str:
    """A line each."""
    return "\n".join(f"- {line}" for line in lines)


def to_csv(card: Scorecard) -> str:
    """`tidy_table` as text."""
    return tidy_table(card).to_csv(index=False)


def tidy_table(card: Scorecard) -> pd.DataFrame:
    """A line per variant and metric, in full precision; a variant without a score still has a line."""
    rows = card.rows.drop(columns=[VAL_LOSS.name, VAL_BITS.name]).rename(columns={"seeds": "finished_runs"})
    units = card.scores["metric"].map({metric.name: metric.unit for metric in card.metrics})
    scores = card.scores.rename(columns={"seeds": "paired_seeds"}).assign(unit=units)
    return rows.merge(scores, on="name", how="left")


def to_json(card: Scorecard) -> str:
    """`content_of` as text."""
    return json.dumps(content_of(card), indent=2, allow_nan=False) + "\n"


def content_of(card: Scorecard) -> dict[str, Any]:
    """Everything, nested: rows with their scores by metric, floors, headline, problems; None for unknown."""
    rows = card.rows.drop(columns=[VAL_LOSS.name, VAL_BITS.name]).rename(columns={"seeds": "finished_runs"})
    records = records_of(rows)
    for row in records:
        scores = card.scores[card.scores["name"] == row["name"]].drop(columns="name")
        row["scores"] = {
            record.pop("metric"): record
            for record in records_of(scores.rename(columns={"seeds": "paired_seeds"}))
        }
    return {
        "headline": card.headline,
        "baseline": card.baseline,
        "yardstick": card.yardstick.name,
        "floors": card.floors,
        "rows": records,
        "problems": card.problems,
    }


def _metric_scores(card: Scorecard, metric: Metric) -> pd.DataFrame:
    scores = card.scores[card.scores["metric"] == metric.name].set_index("name")
    return scores.reindex(card.rows["name"]).reset_index()


def _format_score(score: pd.Series, metric: Metric) -> str:
    has_error = metric.unit != "perplexity" and pd.notna(score["standard_error"])
    text = format_value(score["value"], metric)
    return f"{text} ± {format_value(score['standard_error'], metric)}" if has_error else text


def format_value(value: float, metric: Metric) -> str:
    """A metric's value with the digits of its unit, "-" for an unknown one."""
    if pd.isna(value):
        return "-"
    return f"{value:,.{2 if metric.unit in ('perplexity', 'percent') else 4}f}"


def _format_differences(scores: pd.DataFrame, digits: int) -> pd.Series:
    """Rows of `scores` as "+0.0100 [-0.0200, +0.0400]", the interval left out where there is none."""
    difference = scores["difference"].map(f"{{:+.{digits}f}}".format, na_action="ignore")
    interval = " " + scores.apply(format_interval, axis=1, digits=digits)
    return difference + interval.where(scores["low"].notna(), "")


def records_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows, None for what is unknown."""
    return [
        {str(key): None if pd.isna(value) else value for key, value in record.items()}
        for record in table.to_dict("records")
    ]
