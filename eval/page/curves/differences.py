"""The report's first chart over tokens: each design's training loss minus the baseline's, batch by batch."""

from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
from plotly import graph_objects as go
from scipy import stats

from ...evidence.blow_ups import FAILED
from ...evidence.comparison import Scorecard
from ...evidence.results import RunRecord
from ..blocks import Chart, Section, Sentences
from .logged import StyledRun, late, over_tokens, padded, smooth, styled_runs, thin

CURVE_KEYS = ["init_seed", "data_seed", "tokenizer", "precision", "model", "steps"]
"""Runs alike in these saw the same batches."""
POINTS = 480
LATE = 0.1
"""Of the tokens: before that, losses differ most and say least."""
OUTLYING = 0.02
"""Of the points, at either end, which the range may leave out: a smoothed spike is a hundredth."""
LEAST_RANGE = 0.02
"""Nats per token from the bottom of the chart to its top, where nothing differs."""
END = 1.01
"""How far the tokens' axis reaches, as a multiple of the longest run."""
LONG_ENOUGH = 0.5
"""Of the longest pair's tokens: a seed that has only begun would end its design's mean where it stands."""


@dataclass(frozen=True)
class Gap:
    """A design's differences to the baseline by trained tokens, in nats per token.

    Attributes:
        of: its first run, for name and colour.
        seeds: smoothed difference in training loss by title of the pair's run.
        settled: those of them that have not diverged; all, where every one has.
        mean: over the settled seeds, where all of them have a loss.
        low, high: 95 % t interval of the mean at each point by itself; empty with one seed.
        validation: difference in validation loss, the mean over the same seeds.
        all_diverged: whether no seed has settled.
    """

    of: StyledRun
    seeds: dict[str, pd.Series]
    settled: dict[str, pd.Series]
    mean: pd.Series
    low: pd.Series
    high: pd.Series
    validation: pd.Series
    all_diverged: bool


def difference_section(card: Scorecard) -> Section:
    """A chart for each tokenizer; without blocks where no run has a baseline of its seeds."""
    tokenizers = list(card.runs["tokenizer"].unique())
    found = {tokenizer: gaps_of(card, tokenizer) for tokenizer in tokenizers}
    charts = [
        gap_chart(card, gaps, f", tokenizer {tokenizer}" if len(tokenizers) > 1 else "", number)
        for number, (tokenizer, gaps) in enumerate(found.items(), 1)
        if gaps
    ]
    title = f"Difference to {card.baseline} over training"
    if not charts:
        return Section("difference", title, [])
    note = (
        "Both runs of a pair saw the same batches, so their noise cancels: the difference is taken step by "
        "step, then averaged over a hundredth of the run. Thick: the mean over paired seeds; thin: each "
        "seed; band: the mean's 95 % interval over seeds, at each point by itself; dots: validation loss. "
        "One seed has no band, and what other seeds would show is not known."
    )
    return Section("difference", title, [*charts, Sentences([note])])


def gaps_of(card: Scorecard, tokenizer: str) -> list[Gap]:
    """The designs of a tokenizer that have a run with a baseline run of the same seeds and length."""
    baselines = card.runs[card.runs["baseline"]].drop_duplicates(CURVE_KEYS)
    partners: dict[Any, RunRecord] = baselines.set_index(CURVE_KEYS)["record"].to_dict()
    by_name: dict[str, list[tuple[StyledRun, RunRecord]]] = {}
    for of in styled_runs(card, tokenizer):
        partner = partners.get(tuple(getattr(of.run, key) for key in CURVE_KEYS))
        if partner is not None and not of.run.baseline:
            by_name.setdefault(of.name, []).append((of, partner))
    gaps = [_gap(pairs) for pairs in by_name.values()]
    return [gap for gap in gaps if gap is not None]


def _gap(pairs: list[tuple[StyledRun, RunRecord]]) -> Gap | None:
    seeds, validation = {}, {}
    for of, partner in pairs:
        difference = (over_tokens(of.run.record.train, "loss") - over_tokens(partner.train, "loss")).dropna()
        if len(difference):
            seeds[of.title] = smooth(difference)
            validation[of.title] = over_tokens(of.run.record.val, "loss") - over_tokens(partner.val, "loss")
    if not seeds:
        return None
    diverged = {of.title for of, _ in pairs if of.run.status == FAILED}
    settled = {title: line for title, line in seeds.items() if title not in diverged} or seeds
    longest = max(line.index.max() for line in settled.values())
    counted = [title for title, line in settled.items() if line.index.max() > LONG_ENOUGH * longest]
    together = pd.concat([seeds[title] for title in counted], axis="columns").dropna()
    count = together.shape[1]
    half = stats.t.ppf(0.975, count - 1) * together.std(axis="columns") / count**0.5 if count > 1 else None
    mean, none = together.mean(axis="columns"), pd.Series(dtype=float)
    return Gap(
        pairs[0][0],
        seeds,
        settled,
        mean,
        none if half is None else mean - half,
        none if half is None else mean + half,
        pd.concat([validation[title] for title in counted], axis="columns").dropna().mean(axis="columns"),
        all_diverged=diverged >= seeds.keys(),
    )


def gap_chart(card: Scorecard, gaps: list[Gap], suffix: str, number: int) -> Chart:
    """The gaps of all designs, in the range of their late part, with zero."""
    figure = go.Figure()
    for gap in gaps:
        _add(figure, gap)
    # A diverged run must not flatten the others.
    calm = [gap for gap in gaps if not gap.all_diverged] or gaps
    lines = [line for gap in calm for line in (*gap.settled.values(), gap.mean, gap.validation)]
    shown = late(lines, LATE).quantile([OUTLYING, 1 - OUTLYING])  # a spike is not
    ends = [line.iloc[-1] for gap in calm for line in (gap.mean, *gap.settled.values()) if len(line)]
    values = pd.concat([shown, pd.Series([0.0, *ends])])
    x_high = max(float(line.index.max()) for gap in gaps for line in gap.seeds.values())
    figure.update_layout(
        xaxis={"title": "tokens", "rangemode": "tozero", "range": [0, END * x_high]},
        yaxis={"title": "nats per token (below 0: better)", "range": padded(values, LEAST_RANGE)},
    )
    said = ", ".join(f"{gap.of.name} {gap.mean.iloc[-1]:+.4f}" for gap in gaps if len(gap.mean))
    return Chart(
        f"difference-{number}",
        f"Training loss minus that of {card.baseline}, same seed and batches, in nats per token{suffix}",
        figure,
        about=f"Differences in training loss to {card.baseline} over trained tokens; at the end: {said} nats "
        "per token. Below zero is better.",
        logs="x",
        height=440,
    )


def _add(figure: go.Figure, gap: Gap) -> None:
    """A design's traces: band, seeds, mean and validation, which are shown and hidden together."""
    colour, name = gap.of.colour, gap.of.name
    look = {"legendgroup": name, "name": escape(name)}
    mean = thin(gap.mean, POINTS)
    low, high = gap.low.reindex(mean.index), gap.high.reindex(mean.index)
    if len(gap.low):
        figure.add_scatter(
            x=[*mean.index, *mean.index[::-1]], y=[*low, *high[::-1]], fill="toself", fillcolor=colour,
            opacity=0.14, line={"width": 0}, mode="lines", hoverinfo="skip", **look,
        )  # fmt: skip
        for line in gap.seeds.values():
            line = thin(line, POINTS)
            style = {"color": colour, "width": 0.9}
            figure.add_scatter(
                x=list(line.index), y=line.tolist(), mode="lines", line=style, opacity=0.5,
                hoverinfo="skip", **look,
            )  # fmt: skip
    interval = " [%{customdata[0]:+.4f}, %{customdata[1]:+.4f}]" if len(gap.low) else " (one seed)"
    figure.add_scatter(
        x=list(mean.index), y=mean.tolist(), mode="lines", line={"color": colour, "width": 2.4},
        customdata=[*map(list, zip(low, high, strict=True))] if len(gap.low) else None,
        hovertemplate="%{y:+.4f}" + interval, **look,
    )  # fmt: skip
    if len(gap.validation):
        figure.add_scatter(
            x=list(gap.validation.index), y=gap.validation.tolist(), mode="markers",
            marker={"color": colour, "size": 8, "line": {"color": "var(--card)", "width": 1}},
            hovertemplate="%{y:+.4f} (validation)", **look,
        )  # fmt: skip
