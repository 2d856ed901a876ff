"""The report page: one HTML file with everything about a set of runs, to open anywhere and send around."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from model.files import write_text

from ..slices.section import slice_sections
from .charts import Curve, Style, late_range, line_chart, smooth, ticks
from .comparison import Scorecard, build_scorecard
from .depth.section import depth_section
from .results import RunRecord
from .tables import (
    NOTES,
    difference_table,
    floor_lines,
    item_difference_table,
    run_table,
    score_table,
    setting_table,
    verdict_lines,
)

TEMPLATES = Path(__file__).parent
COLOURS = 8  # in the template's palette; the first is the baseline's
SEED_DASHES = ("", "7 3", "2 3", "9 3 2 3")
SMALL = (470, 260)  # px
# Runs alike in these saw the same batches.
CURVE_KEYS = ["init_seed", "data_seed", "tokenizer", "precision", "model", "steps"]


def write_page(records: Sequence[RunRecord], out: Path, baseline: str | None = None) -> None:
    """Write the page about these runs to `out`. Raises UserError where none of them is of the baseline."""
    card = build_scorecard(records, baseline)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        card=card,
        scores=score_table(card),
        verdicts=verdict_lines(card),
        differences=difference_table(card),
        forest=forest(card),
        loss_charts=loss_charts(card),
        small_charts=[chart for chart in (learning_rate_chart(card), gradient_norm_chart(card)) if chart],
        slices=slice_sections(card, colours(card)),
        depth=depth_section(card),
        item_differences=item_difference_table(card),
        tasks=task_table(card),
        variants=run_table(card),
        settings=setting_table(card),
        facts=fact_table(card),
        notes=[*floor_lines(card), *NOTES],
    )
    write_text(out, page)


def colours(card: Scorecard) -> dict[str, int]:
    """Palette index of each row by name: 0 for the baseline, the others in the order of the scorecard."""
    others = [row.name for row in card.rows.itertuples() if not row.baseline]
    numbered = {name: 1 + number % (COLOURS - 1) for number, name in enumerate(others)}
    return {name: numbered.get(name, 0) for name in card.rows["name"]}


def styled_runs(card: Scorecard, tokenizer: str | None = None) -> list[tuple[Any, Style]]:
    """Every run (row of `card.runs`), or those of a tokenizer, with its style, in the scorecard's order."""
    colour_by_name = colours(card)
    several_data_seeds = card.runs["data_seed"].nunique() > 1
    styled = []
    for name in card.rows["name"]:
        group = card.runs[card.runs["name"] == name]
        for number, run in enumerate(group.itertuples()):
            seed = f"{run.init_seed}/{run.data_seed}" if several_data_seeds else run.init_seed
            dashes = SEED_DASHES[number % len(SEED_DASHES)]
            if tokenizer in (None, run.tokenizer):
                title = name if run.given else f"{name}, seed {seed}"
                styled.append((run, Style(title, colour_by_name[name], dashes)))
    return styled


def loss_charts(card: Scorecard) -> list[dict[str, Any]]:
    """The charts of losses: in nats per token each tokenizer has its own, in bits per byte they share one."""
    tokenizers = card.runs["tokenizer"].unique()
    charts = []
    for tokenizer in tokenizers:
        suffix = f", tokenizer {tokenizer}" if len(tokenizers) > 1 else ""
        pair = loss_chart(card, tokenizer), difference_chart(card, tokenizer)
        charts += [chart | {"title": chart["title"] + suffix} for chart in pair if chart]
    in_bits = bits_chart(card) if len(tokenizers) > 1 else None
    return [*charts, in_bits] if in_bits else charts


def loss_chart(card: Scorecard, tokenizer: str) -> dict[str, Any] | None:
    """Training and validation loss of a tokenizer's runs over trained tokens; None where none is logged."""
    curves = [
        Curve(style, smooth(loss), loss, _over_tokens(run.record.val, "loss"), run.status == "diverged")
        for run, style in styled_runs(card, tokenizer)
        if len(loss := _over_tokens(run.record.train, "loss"))
    ]
    if not curves:
        return None
    lowest = min(curve.faint.min() for curve in curves)
    known = card.floors.get(tokenizer, {})
    floors = {name: floor for name, floor in known.items() if floor > lowest}
    # A loss far above that of knowing nothing is a divergence; shown whole it would flatten all other curves.
    highest = min(max(curve.faint.max() for curve in curves), known.get("uniform", math.inf) + 0.5)
    y_range = lowest, max([lowest, highest, *floors.values()])
    return line_chart("Loss", curves, y_range=y_range, y_label="nats per token", floors=floors)


def difference_chart(card: Scorecard, tokenizer: str) -> dict[str, Any] | None:
    """Smoothed difference in training loss of a tokenizer's runs to its baseline run of the same seeds.

    Step by step: both saw the same batches, so the noise of the batches cancels before anything is smoothed.
    """
    baselines = card.runs[card.runs["baseline"]].drop_duplicates(CURVE_KEYS)
    partners: dict[Any, RunRecord] = baselines.set_index(CURVE_KEYS)["record"].to_dict()
    curves = []
    for run, style in styled_runs(card, tokenizer):
        partner = partners.get(tuple(getattr(run, key) for key in CURVE_KEYS))
        if run.baseline or partner is None:
            continue
        difference = (_over_tokens(run.record.train, "loss") - _over_tokens(partner.train, "loss")).dropna()
        if len(difference):
            curves.append(Curve(style, smooth(difference), diverged=run.status == "diverged"))
    if not curves:
        return None
    title = f"Training loss against {card.baseline}, same seed, smoothed (below zero is better)"
    return line_chart(title, curves, y_range=late_range(curves), y_label="nats per token")


def bits_chart(card: Scorecard) -> dict[str, Any] | None:
    """Validation loss of every run in bits per byte over trained tokens; None where none is logged."""
    bits = [(style, _over_tokens(run.record.val, "bits_per_byte")) for run, style in styled_runs(card)]
    curves = [Curve(style, line, points=line) for style, line in bits if len(line)]
    if not curves:
        return None
    y_range = min(curve.line.min() for curve in curves), max(curve.line.max() for curve in curves)
    return line_chart("Validation loss of all tokenizers", curves, y_range=y_range, y_label="bits per byte")


def learning_rate_chart(card: Scorecard) -> dict[str, Any] | None:
    """The learning rate of every run over trained tokens; None where none is logged."""
    rates = [(style, _over_tokens(run.record.train, "lr")) for run, style in styled_runs(card)]
    curves = [Curve(style, rate) for style, rate in rates if len(rate)]
    if not curves:
        return None
    highest = max(curve.line.max() for curve in curves)
    return line_chart("Learning rate", curves, y_range=(0, highest), size=SMALL)


def gradient_norm_chart(card: Scorecard) -> dict[str, Any] | None:
    """The smoothed gradient norm of every run over trained tokens; None where none is logged."""
    curves = [
        Curve(style, smooth(norm), diverged=run.status == "diverged")
        for run, style in styled_runs(card)
        if len(norm := _over_tokens(run.record.train, "grad_norm"))
    ]
    if not curves:
        return None
    highest = 2 * late_range(curves)[1]
    return line_chart("Gradient norm, smoothed", curves, y_range=(0, highest), size=SMALL)


def _over_tokens(metrics: pd.DataFrame, column: str) -> pd.Series:
    return metrics.set_index("tokens")[column].replace([math.inf, -math.inf], math.nan).dropna()


def forest(card: Scorecard) -> dict[str, Any] | None:
    """Geometry of the differences by the yardstick with their intervals, a line per variant, in px."""
    scores = card.scores[card.scores["metric"] == card.yardstick.name].set_index("name")
    scores = scores.reindex(card.rows["name"]).dropna(subset="low")
    if scores.empty:
        return None
    reach = 1.1 * float(np.abs(scores[["low", "high"]]).to_numpy().max()) or 1.0
    left, right, top, line_height = 230, 950, 24, 34

    def x_px(difference: float) -> float:
        return round((left + right) / 2 + (right - left) / 2 * difference / reach, 1)

    colour_by_name = colours(card)
    lines = [
        {
            "name": name,
            "colour": colour_by_name[name],
            "low": x_px(score["low"]),
            "high": x_px(score["high"]),
            "middle": x_px(score["difference"]),
            "y": top + number * line_height,
            "over_seeds": "seeds" in score["interval"],
        }
        for number, (name, score) in enumerate(scores.iterrows())
    ]
    return {
        "unit": card.yardstick.unit,
        "lines": lines,
        "height": top + len(lines) * line_height + 14,
        "marks": [(x_px(mark), f"{mark:+g}" if mark else "0") for mark in ticks(-reach, reach, about=6)],
    }


def task_table(card: Scorecard) -> pd.DataFrame:
    """All task scores as lm-eval gives them (fractions), as text: a row per metric, a column per run."""
    columns = {}
    for run, style in styled_runs(card):
        texts = {}
        for task, scores in run.record.scores.items():
            count = run.record.sample_count(task)
            title = f"{task} ({count:,} items)" if count else task
            for metric, value in scores.items():
                if not metric.endswith("_stderr"):
                    error = scores.get(f"{metric}_stderr")
                    texts[title, metric] = f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
        if texts:
            columns[style.title] = pd.Series(texts)
    if not columns:
        return pd.DataFrame()
    return pd.DataFrame(columns).rename_axis(["task", "metric"]).reset_index().fillna("-")


def fact_table(card: Scorecard) -> pd.DataFrame:
    """Every run's facts as text, a row per run."""
    rows = []
    for run, _ in styled_runs(card):
        summary = run.record.summary
        facts = {
            "run": run.folder,
            "variant": summary["variant"],
            "status": summary["status"],
            "val loss": None if math.isnan(run.val_loss) else f"{run.val_loss:.4f}",
            "bits/byte": None if math.isnan(run.val_bits_per_byte) else f"{run.val_bits_per_byte:.4f}",
            "tokenizer": run.tokenizer,
            "mode": summary.get("precision"),
            **{key.replace("_", " "): _setting(value) for key, value in run.record.settings.items()},
            "init seed": str(summary.get("init_seed", "-")),
            "data seed": str(summary.get("data_seed", "-")),
            "step": summary.get("step"),
            "of": summary.get("steps"),
            "tokens": summary.get("tokens"),
            "skipped steps": summary.get("skipped_steps"),
            "tokens/s": summary.get("tokens_per_s"),
            "wall time": _duration(summary.get("wall_time_s")),
            "processes": summary.get("world_size"),
            "model": summary.get("model"),
            "parameters": summary.get("parameters"),
            "best checkpoint": summary.get("best_checkpoint"),
            "last checkpoint": summary.get("last_checkpoint"),
            "validation tokens": summary.get("val_tokens"),
            "validation set": str(summary.get("val_fingerprint", "-"))[:12],
        }
        rows.append({title: _text(fact) for title, fact in facts.items()})
    return pd.DataFrame(rows)


def _text(value: float | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if isinstance(value, int | float) else value


def _setting(value: float | str | None) -> str | None:
    """A rate or a schedule as text: rates are too small for `_text`."""
    return f"{value:g}" if isinstance(value, int | float) else value


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
