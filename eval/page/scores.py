"""How well the designs do: validation losses, and evaluation as designs by tasks with intervals."""

from collections.abc import Iterator
from html import escape

import numpy as np
import pandas as pd
from plotly import graph_objects as go
from plotly.subplots import make_subplots

from ..evidence.comparison import Scorecard
from ..evidence.metrics import VAL_BITS, VAL_LOSS, Metric
from ..evidence.tables import (
    difference_table,
    format_value,
    item_difference_table,
    row_titles,
)
from ..evidence.verdicts import describe_sample, format_interval
from .blocks import Chart, Section, Table
from .runs import baseline_first, design_colours, run_titles

LOSS_NOTE = (
    "Means over the finished runs. Bits per byte of text compare across tokenizers, nats per token do not."
)
LOWER_IS_BETTER = ("perplexity", "bits/byte", "nats/token")
"""Units of losses; of others more is better, or it is not known."""
LABEL_WIDTH = 18
"""Characters of a design's name in a line beside a chart."""
ROW_PX, LINE_PX, TASK_PX, TITLE_PX = 26, 15, 84, 40
"""Heights in the chart of tasks: of a design, of each further line of its name, of a task's title and axis,
and of the title alone."""
TITLE_WIDTH = 40
"""Characters of a task's title in a line."""
MOST_WIDER = 4.0
"""How much farther than the median design's an interval is drawn: two seeds leave some that dwarf others."""
OVER_ITEMS = "5px,4px"
"""Dashes of an interval that another seed may leave."""


def losses_section(card: Scorecard) -> Section:
    """Validation losses, and the differences to the baseline that `forest_section` draws."""
    blocks = [Table(loss_table(card), note=LOSS_NOTE)]
    if len(differences := difference_table(card)):
        title = f"Difference to {card.baseline} (95 % intervals, negative is better)"
        blocks.append(Table(differences.rename(columns={"variant": "design"}), title=title))
    return Section("validation-loss", "Validation losses", [*blocks])


def evaluation_section(card: Scorecard) -> Section:
    """Designs by tasks: each task's main metric, its difference to the baseline and the interval of that."""
    metrics = main_metrics(card)
    if not metrics:
        return Section("evaluation", "Evaluation", [])
    note = (
        f"In each cell the mean over seeds; below it the difference to {card.baseline}, in points for "
        "accuracies, and its 95 % interval. Of accuracies higher is better, of perplexities, bits and nats "
        "lower. ± is the standard error over the items, where there is no interval."
    )
    blocks: list[Chart | Table] = [Table(task_table(card, metrics), note=note)]
    if chart := task_chart(card, metrics):
        blocks.append(chart)
    return Section("evaluation", "Evaluation", [*blocks])


def all_scores_section(card: Scorecard) -> Section:
    """Every accuracy's difference and every metric of every run, folded."""
    blocks = []
    if len(differences := item_difference_table(card)):
        title = f"Accuracies against {card.baseline} (points, 95 % intervals)"
        blocks.append(Table(differences.rename(columns={"variant": "design"}), title=title))
    if len(scores := run_score_table(card)):
        note = "As lm-evaluation-harness reports them: accuracies as fractions, ± its standard error."
        blocks.append(Table(scores, title="Every metric of every run", note=note))
    return Section("all-scores", "All scores of all runs", [*blocks], kind="folded")


def loss_table(card: Scorecard) -> pd.DataFrame:
    """Each design's validation loss in each unit, its deviation over seeds and the number of these."""
    rows = baseline_first(card)
    table = pd.DataFrame({"design": _titles(card)})
    for metric in (VAL_LOSS, VAL_BITS):
        scores = _scores(card, metric)
        if scores["value"].notna().any():
            cells = scores["value"].map(lambda value, metric=metric: format_value(value, metric))
            table[metric.unit.replace("/", " per ")] = cells
    deviations = _scores(card, VAL_LOSS)["seed_sd"]
    if deviations.notna().any():
        table["deviation over seeds"] = deviations.map("{:.4f}".format, na_action="ignore").fillna("-")
    table["seeds"] = rows["seeds"].astype(str).where(~rows["given"], "-")
    modes = rows["precision"].fillna("-")
    if modes.nunique() > 1:
        table["mode"] = modes
    return table


def main_metrics(card: Scorecard) -> list[Metric]:
    """Of each task that a run was scored on the metric that stands for it, in the scorecard's order.

    That is the task's first, or its first accuracy where it is none of those that the scorecard has titles
    for. A task that is one of a group's is left out where the group has a mean.
    """
    scored = set(card.scores["metric"])
    found: dict[str, list[Metric]] = {}
    for metric in card.metrics:
        if metric.task and metric.name in scored:
            found.setdefault(metric.task, []).append(metric)
    parts = {
        part
        for record in card.runs["record"]
        for group, of_group in record.results.get("group_subtasks", {}).items()
        for part in of_group
        if group in found
    }
    return [
        next((metric for metric in metrics if metric.unit == "percent"), metrics[0])
        if metrics[0].name == f"{task}_{metrics[0].key}"
        else metrics[0]
        for task, metrics in found.items()
        if task not in parts
    ]


def task_table(card: Scorecard, metrics: list[Metric]) -> pd.DataFrame:
    """A row per design, a column per metric: the mean, and below it the difference with its interval."""
    table = pd.DataFrame({"design": _titles(card)})
    for metric in metrics:
        table[metric.title] = [_cell(score, metric) for _, score in _scores(card, metric).iterrows()]
    return table


def task_chart(card: Scorecard, metrics: list[Metric]) -> Chart | None:
    """Each task's differences to the baseline with their intervals, one strip above the other."""
    compared = {}
    for metric in metrics:
        scores = _scores(card, metric).dropna(subset="difference")
        if len(scores):
            compared[metric] = scores
    if not compared:
        return None
    sizes = [len(scores) for scores in compared.values()]
    names = {as_label(name) for scores in compared.values() for name in scores["name"]}
    lines = 1 + max(name.count("<br>") for name in names)
    height = TITLE_PX + sum(TASK_PX + (ROW_PX + LINE_PX * (lines - 1)) * size for size in sizes)
    figure = make_subplots(
        rows=len(compared),
        cols=1,
        row_heights=sizes,
        vertical_spacing=TASK_PX / height,
        subplot_titles=[_strip_title(metric) for metric in compared],
    )
    colours = design_colours(card)
    for number, (metric, scores) in enumerate(compared.items(), start=1):
        place = {"row": number, "col": 1}
        for _, score in scores.iterrows():
            figure.add_trace(_interval(score, metric, colours[score["name"]]), **place)
        labels = [as_label(name) for name in scores["name"]]
        figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], automargin=True, **place)
        figure.update_yaxes(range=[-0.5, len(labels) - 0.5], **place)  # no name beyond its strip
        figure.update_xaxes(range=_reach(scores), **place)
    figure.update_xaxes(zeroline=True, zerolinewidth=2, automargin=True, nticks=6)
    # The titles reach over the designs' names, and the first has nothing above it.
    figure.update_annotations(font_size=13, x=1, xanchor="right")
    share = 1 - TITLE_PX / height
    figure.for_each_yaxis(lambda axis: axis.update(domain=[share * end for end in axis.domain]))
    figure.for_each_annotation(lambda title: title.update(y=share * title.y))
    return Chart(
        name="tasks",
        title=f"Each task's difference to {card.baseline}, with 95 % intervals",
        figure=figure,
        about="Dot: difference. Line: its interval, solid over seeds, dashed over the items of one seed. A "
        "line that crosses zero shows no difference; one that runs off the edge is longer.",
        height=height,
    )


def _reach(scores: pd.DataFrame) -> list[float]:
    """The range of a strip: zero, all differences, and the intervals but those far wider than others."""
    ends = scores[["low", "high"]].astype(float)
    farthest = ends.abs().max(axis=1).dropna()
    most = MOST_WIDER * farthest.quantile(0.5, interpolation="lower") if len(farthest) else np.inf
    shown = [0.0, *scores["difference"], *ends.clip(-most, most).to_numpy().ravel()]
    low, high = np.nanmin(shown), np.nanmax(shown)
    margin = 0.06 * (high - low) or 1.0
    return [low - margin, high + margin]


def _interval(score: pd.Series, metric: Metric, colour: str) -> go.Scatter:
    """A design's line in a strip: its difference, and the interval where there is one."""
    has_interval = bool(pd.notna(score["low"]))
    ends = ["low", "difference", "high"] if has_interval else ["difference"]
    sample = describe_sample(score)
    name = escape(score["name"], quote=False)
    dash = "solid" if has_interval and "seeds" in score["interval"] else OVER_ITEMS
    return go.Scatter(
        x=score[ends].tolist(),
        y=[as_label(score["name"])] * len(ends),
        mode="lines+markers",
        line={"color": colour, "width": 2.6, "dash": dash},
        marker={"color": colour, "size": [0, 10, 0] if has_interval else [10]},
        name=name,
        hovertext=f"{name}: {_difference(score, metric)}" + (f" over {sample}" if sample else ""),
        hoverinfo="text",
        showlegend=False,
    )


def run_score_table(card: Scorecard) -> pd.DataFrame:
    """Every score as lm-eval gives it, as text: a row per metric and run."""
    return pd.DataFrame(_run_scores(card))


def _run_scores(card: Scorecard) -> Iterator[dict[str, str]]:
    titles, records = run_titles(card), card.runs.set_index("folder")["record"]
    scored = {
        (task, metric)
        for record in records
        for task, scores in record.scores.items()
        for metric in scores
        if not metric.endswith("_stderr") and "_stderr," not in metric
    }
    for task, metric in sorted(scored):
        for folder, title in titles.items():
            scores = records[folder].scores.get(task, {})
            if metric in scores:
                error, count = scores.get(f"{metric}_stderr"), records[folder].sample_count(task)
                yield {
                    "score": f"{task} {metric}",
                    "run": title,
                    "value": f"{scores[metric]:.4f}" + ("" if error is None else f" ± {error:.4f}"),
                    "items": f"{count:,}" if count else "-",
                }


def _titles(card: Scorecard) -> list[str]:
    titles = row_titles(card).set_axis(card.rows["name"])
    return [titles[name] for name in baseline_first(card)["name"]]


def _scores(card: Scorecard, metric: Metric) -> pd.DataFrame:
    """A metric's rows of `scores`, one for each design, the baseline's first."""
    scores = card.scores[card.scores["metric"] == metric.name].set_index("name")
    return scores.reindex(baseline_first(card)["name"]).rename_axis("name").reset_index()


def _cell(score: pd.Series, metric: Metric) -> str:
    text = format_value(score["value"], metric)
    if pd.notna(score["difference"]):
        return f"{text}\n{_difference(score, metric)}"
    has_error = metric.unit != "perplexity" and pd.notna(score["standard_error"])
    return f"{text} ± {format_value(score['standard_error'], metric)}" if has_error else text


def _difference(score: pd.Series, metric: Metric) -> str:
    digits = 2 if metric.unit in ("percent", "perplexity") else 4
    text = f"{score['difference']:+.{digits}f}"
    return f"{text} {format_interval(score, digits)}" if pd.notna(score["low"]) else text


def _strip_title(metric: Metric) -> str:
    """A task's title with its unit and what is better."""
    title = metric.title.removesuffix(" %")
    unit = "points" if metric.unit == "percent" else metric.unit.replace("/", " per ")
    if metric.unit == "perplexity" or metric.unit in title:
        unit = ""
    better = {"percent": "right is better"} | dict.fromkeys(LOWER_IS_BETTER, "left is better")
    said = ", ".join(filter(None, [unit, better.get(metric.unit)]))
    between = " " if len(title) + len(said) < TITLE_WIDTH else "<br>"
    return escape(title, quote=False) + (f"{between}({said})" if said else "")


def as_label(name: str) -> str:
    """A name beside a chart, over several lines, which a narrow page has space for."""
    lines = [""]
    for word in name.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= LABEL_WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(escape(line, quote=False) for line in lines)
