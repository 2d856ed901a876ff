"""The report's charts of losses, over tokens and over hours, and of the learning rate and gradient norm."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from plotly import graph_objects as go

from ...evidence.blow_ups import FAILED
from ...evidence.comparison import Scorecard
from ...evidence.spikes import spike_heights
from ..blocks import Chart, Section, Sentences
from .logged import StyledRun, hours_at, late, over_tokens, padded, smooth, styled_runs, thin

POINTS = 480
"""Of a curve: two for each pixel of a phone."""
LATE = 0.5
"""Of the tokens: the losses after that fill the chart, so that 0.02 nats can be seen at full length."""
LEAST_RANGE = 0.03
"""Nats per token, or bits per byte, from the bottom of a chart to its top, where the curves are flat."""
END = 1.01
"""How far the tokens' axis reaches, as a multiple of the longest run."""
MOST_SAID = 24
"""Lines of a label that fit on the chart."""
MOST_SPIKES = 20
"""Of a run, the highest."""


class Line(NamedTuple):
    """A run's curve over tokens."""

    of: StyledRun
    values: pd.Series


class Figure:
    """A figure over tokens that is drawn over hours too."""

    def __init__(self, y_title: str) -> None:
        self.figure = go.Figure()
        self.figure.update_layout(xaxis={"title": "tokens", "rangemode": "tozero"}, yaxis={"title": y_title})
        self.hours: list[list[float]] = []

    def add(self, runs: Sequence[StyledRun], values: pd.Series, **look: Any) -> None:
        """A trace of a run, or of the mean of several, over their tokens."""
        hours = [hours_at(of.run.record, values.index) for of in runs]
        self.hours.append(np.mean(hours, axis=0).tolist())
        name = runs[0].title if len(runs) == 1 else f"{runs[0].name}, {len(runs)} seeds"
        self._add(list(values.index), values, name=escape(name), legendgroup=runs[0].name, **look)

    def add_level(self, x_high: float, level: float, text: str) -> None:
        """A dashed horizontal line, its text at the end."""
        longest = max((max(hours, default=0) for hours in self.hours), default=0)
        self.hours.append([0, longest])
        self._add(
            [0, x_high], pd.Series([level, level]), mode="lines+text", text=["", text],
            textposition="top left",
            line={"color": "var(--soft)", "dash": "dash", "width": 1}, hoverinfo="skip", showlegend=False,
            textfont={"color": "var(--soft)"},
        )  # fmt: skip

    def axes(self) -> dict[str, list[list[float]]]:
        """What `Chart.axes` wants; empty where a run has logged no speed."""
        if any(math.isnan(hours) for of_trace in self.hours for hours in of_trace):
            return {}
        return {"tokens": [list(trace.x) for trace in self.figure.data], "hours of training": self.hours}

    def finish(self) -> go.Figure:
        """The figure; what one label cannot say of all its traces is said of the nearest."""
        if sum(trace.hoverinfo != "skip" for trace in self.figure.data) > MOST_SAID:
            self.figure.update_layout(hovermode="closest")
        return self.figure

    def _add(self, x: list[float], values: pd.Series, **look: Any) -> None:
        self.figure.add_scatter(x=x, y=values.tolist(), **look)


def loss_section(card: Scorecard) -> Section:
    """The losses over tokens and over time: a chart for each tokenizer, and one of all in bits per byte."""
    tokenizers = list(card.runs["tokenizer"].unique())
    charts = [
        loss_chart(card, tokenizer, number)
        for number, tokenizer in enumerate(tokenizers, 1)
        if any(len(over_tokens(run.run.record.train, "loss")) for run in styled_runs(card, tokenizer))
    ]
    if len(tokenizers) > 1 and any(len(line.values) for line in _validation(card, None, "bits_per_byte")):
        charts.append(bits_chart(card))
    if not charts:
        return Section("loss", "Loss", [Sentences(["No run has logged a training loss yet."])])
    note = (
        "Lines: training loss, as the mean over a hundredth of the run; dots: validation loss. Of a design "
        "with several seeds the thick line and the large dots are their mean. The range is that of the "
        "second half of training; “show all” shows everything. Over hours: the time of the training "
        "steps alone, without validation and checkpoints."
    )
    return Section("loss", "Loss", [*charts, Sentences([note])])


def loss_chart(card: Scorecard, tokenizer: str, number: int) -> Chart:
    """Training and validation loss of a tokenizer's runs, in the range of the second half of training."""
    raw = [Line(of, over_tokens(of.run.record.train, "loss")) for of in styled_runs(card, tokenizer)]
    raw = [line for line in raw if len(line.values)]
    lines = [Line(of, smooth(values)) for of, values in raw]
    validation = _validation(card, tokenizer, "loss")
    y_range = padded(
        late([line.values for line in _settled(lines) + _settled(validation)], LATE), LEAST_RANGE
    )
    figure = Figure("nats per token")
    _add_lines(figure, lines)
    _add_points(figure, validation)
    for of, values in raw:
        _add_spikes(figure, of, values)
    _add_divergence(figure, lines, y_range)
    lowest = min(line.values.min() for line in raw)
    x_high = max(float(line.values.index.max()) for line in lines)
    for name, floor in card.floors.get(tokenizer, {}).items():
        if floor > lowest:
            figure.add_level(x_high, floor, f"{name} {floor:.2f}")
    figure.figure.update_layout(xaxis={"range": [0, END * x_high]}, yaxis={"range": y_range})
    several = card.runs["tokenizer"].nunique() > 1
    return Chart(
        f"loss-{number}",
        "Loss in nats per token" + (f", tokenizer {tokenizer}" if several else ""),
        figure.finish(),
        about="Training loss (lines) and validation loss (dots) of every run over trained tokens; "
        + _ends(lines, "nats per token"),
        axes=figure.axes(),
        logs="xy",
        height=460,
    )


def bits_chart(card: Scorecard) -> Chart:
    """Validation loss of every run in bits per byte, which compares across tokenizers."""
    lines = [line for line in _validation(card, None, "bits_per_byte") if len(line.values)]
    figure = Figure("bits per byte")
    _add_lines(figure, lines, mode="lines+markers")
    y_range = padded(late([line.values for line in _settled(lines)], LATE), LEAST_RANGE)
    figure.figure.update_layout(yaxis={"range": y_range})
    return Chart(
        "loss-bits",
        "Validation loss in bits per byte, all tokenizers",
        figure.finish(),
        about="Validation loss of every run over trained tokens; " + _ends(lines, "bits per byte"),
        axes=figure.axes(),
        logs="xy",
    )


def schedule_section(card: Scorecard) -> Section:
    """The learning rate and the gradient norm of every run; without blocks where none is logged."""
    rates = [Line(of, over_tokens(of.run.record.train, "lr")) for of in styled_runs(card)]
    norms = [Line(of, smooth(over_tokens(of.run.record.train, "grad_norm"))) for of in styled_runs(card)]
    blocks = []
    if rates := [line for line in rates if len(line.values)]:
        figure = Figure("learning rate")
        _add_lines(figure, rates, template="%{y:.3g}", most=POINTS // 4)
        about = f"The learning rate of every run; it reaches {max(line.values.max() for line in rates):.3g}."
        figure.figure.update_layout(yaxis={"exponentformat": "e"})
        axes = figure.axes()
        blocks.append(Chart("learning-rate", "Learning rate", figure.finish(), about, axes, "xy", height=300))
    if norms := [line for line in norms if len(line.values)]:
        figure = Figure("gradient norm")
        _add_lines(figure, norms, template="%{y:.3g}", most=POINTS // 2)
        highest = 2 * float(late([line.values for line in _settled(norms)], 0.1).max())
        figure.figure.update_layout(yaxis={"range": [0, highest or 1]})
        about = "The gradient norm of every run before clipping, as the mean over a hundredth of the run."
        title = "Gradient norm before clipping, smoothed"
        blocks.append(Chart("gradient-norm", title, figure.finish(), about, figure.axes(), "xy", height=300))
    return Section("schedule", "Learning rate and gradient norm", [*blocks], kind="folded")


def _validation(card: Scorecard, tokenizer: str | None, column: str) -> list[Line]:
    return [Line(of, over_tokens(of.run.record.val, column)) for of in styled_runs(card, tokenizer)]


def _settled(lines: Sequence[Line]) -> list[Line]:
    """Those that did not diverge, which would flatten all others; all, where every one did."""
    return [line for line in lines if line.of.run.status != FAILED] or list(lines)


def _add_lines(
    figure: Figure, lines: Sequence[Line], mode: str = "lines", template: str = "%{y:.4f}", most: int = POINTS
) -> None:
    for of_design in _by_design(lines):
        runs, mean = _mean_of(of_design)
        colour = runs[0].colour
        if len(of_design) > 1:
            for of, values in of_design:
                style = {"color": colour, "width": 0.9}
                figure.add([of], thin(values, most), mode="lines", line=style, opacity=0.5, hoverinfo="skip")
        if len(mean):
            style = {"color": colour, "width": 2}
            figure.add(runs, thin(mean, most), mode=mode, line=style, hovertemplate=template)


def _add_points(figure: Figure, lines: Sequence[Line]) -> None:
    for of_design in _by_design(lines):
        runs, mean = _mean_of(of_design)
        small, large = ({"color": runs[0].colour, "size": size} for size in (4, 7))
        if len(of_design) > 1:
            for of, values in of_design:
                values = thin(values, POINTS // 4)
                figure.add([of], values, mode="markers", marker=small, opacity=0.5, hoverinfo="skip")
        if len(mean):
            said = "%{y:.4f} (validation)"
            figure.add(runs, thin(mean, POINTS // 4), mode="markers", marker=large, hovertemplate=said)


def _by_design(lines: Sequence[Line]) -> list[list[Line]]:
    """The lines that have points, those of a design's seeds together."""
    by_name: dict[str, list[Line]] = {}
    for line in lines:
        if len(line.values):
            by_name.setdefault(line.of.name, []).append(line)
    return list(by_name.values())


def _mean_of(lines: Sequence[Line]) -> tuple[list[StyledRun], pd.Series]:
    """The runs that have not diverged, or all, and their mean as far as each of them got."""
    settled = _settled(lines)
    together = pd.concat([line.values for line in settled], axis="columns").dropna()
    return [line.of for line in settled], together.mean(axis="columns")


def _add_spikes(figure: Figure, of: StyledRun, values: pd.Series) -> None:
    """A triangle on the curve where the loss as logged jumps far above those around it."""
    usual = values.rolling(max(5, len(values) // 100), center=True, min_periods=1).median()
    spikes = spike_heights(values).nlargest(MOST_SPIKES).sort_index()
    if len(spikes):
        marker = {"color": of.colour, "size": 11, "symbol": "triangle-up-open", "line": {"width": 2}}
        figure.add(
            [of], usual[spikes.index], mode="markers", marker=marker,
            customdata=spikes.tolist(), hovertemplate="spike of %{customdata:+.2f} nats",
        )  # fmt: skip


def _add_divergence(figure: Figure, lines: Sequence[Line], y_range: Sequence[float]) -> None:
    """A cross where a diverged run leaves the chart, or at its end."""
    for of, values in lines:
        if of.run.status == FAILED:
            inside = values[(values >= y_range[0]) & (values <= y_range[1])]
            figure.add(
                [of], (inside if len(inside) else values).tail(1), mode="markers+text", text=["diverged"],
                textposition="middle right", textfont={"color": "var(--ink)"}, hovertemplate="diverged",
                marker={"color": of.colour, "size": 10, "symbol": "x"}, cliponaxis=False,
            )  # fmt: skip


def _ends(lines: Sequence[Line], unit: str) -> str:
    return (
        "at the end: " + ", ".join(f"{of.title} {values.iloc[-1]:.3f}" for of, values in lines) + f" {unit}."
    )
