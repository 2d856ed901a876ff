"""What the designs cost beside the baseline, and what their losses are at its time instead of its tokens."""

import math
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from plotly import graph_objects as go

from ..evidence.comparison import Scorecard
from ..evidence.differences import pair_up
from ..evidence.results import RunRecord
from .blocks import Chart, Section, Sentences, Table
from .runs import baseline_first, design_colours, duration
from .timing import STEADY, Cost, cost_of, training_hours, unsteadiness, validations

EARLY = 0.3
"""The share of a run whose losses are so high that a chart that holds them shows no differences."""

DASHES = ("solid", "dash", "dot", "dashdot")
"""Of the first, second, ... design that has a colour: the baseline's rows share one."""


@dataclass(frozen=True)
class EqualTime:
    """A design against the baseline at the time at which the baseline had finished.

    Attributes:
        differences: in the yardstick's unit, of each pair of runs.
        done: of each pair, the share of its tokens that the design had trained by then.
        reason: why times cannot be compared; empty where they can.
    """

    differences: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    reason: str = ""


def costs_section(card: Scorecard) -> Section:
    """What each design costs, its loss at equal tokens and at equal time, and losses over hours."""
    trained = card.runs[~card.runs["given"]]
    costs = {run.folder: cost_of(run.record) for run in trained.itertuples()}
    if not any(map(math.isfinite, (value for cost in costs.values() for value in cost.figures.values()))):
        return Section("costs", "Cost", [])
    note = (
        "Means over a design's runs; in brackets the ratio to the baseline's runs of the same seeds and "
        "setting. A step's time is the median over a run, without the first step, which compiles; with "
        "several seeds their range stands below. Memory is the peak of a rank: of its GPU, or of its process "
        "on a CPU."
    )
    blocks: list[Chart | Table | Sentences] = [Table(cost_table(card, costs), note=note)]
    if len(times := equal_time_table(card, costs)):
        note = (
            f"Differences to {card.baseline} in {_unit(card)}, negative is better. At equal time: the "
            "design's validation loss at the hour at which the baseline of its seed had finished, read off "
            "between its validations; with several seeds their range, which is no interval, stands below. A "
            "slower design had not lowered its learning rate to the end by then and would do better on a "
            "schedule of that length; of a faster one its last loss counts."
        )
        blocks.append(Table(times, title="Loss at equal tokens and at equal time", note=note))
    if unsteady := unsteady_line(card, costs):
        blocks.append(Sentences([unsteady]))
    if chart := time_chart(card):
        blocks.append(chart)
    return Section("costs", f"Cost beside {card.baseline}", blocks)


def cost_table(card: Scorecard, costs: dict[str, Cost]) -> pd.DataFrame:
    """Every design's cost as text, each cell with its ratio to the baseline's below it."""
    rows = []
    for row in baseline_first(card).itertuples():
        if row.given:
            continue
        runs = _counted(card, row.name)
        mine = pd.DataFrame([costs[folder].figures for folder in runs["folder"]]).mean()
        ratios = _ratios(card, row, costs)
        seconds = [costs[folder].figures["step_s"] for folder in runs["folder"]]
        spread = f"\n{_seconds(min(seconds))} to {_seconds(max(seconds))}" if len(seconds) > 1 else ""
        texts = {
            "parameters": f"{mine['parameters']:,.0f}",
            "FLOPs per token": _short(mine["flops_per_token"]),
            "tokens per second": f"{mine['tokens_per_s']:,.0f}",
            "time of a step": _seconds(mine["step_s"]) + (spread if math.isfinite(mine["step_s"]) else ""),
            "memory of a rank": f"{mine['peak_memory_gib']:.2f} GiB",
            "wall time": duration(mine["wall_time_s"]),
        }
        cells = {"design": row.name + (" (baseline)" if row.baseline else "")}
        for (title, text), key in zip(texts.items(), mine.index, strict=True):
            ratio = f"\n({ratios[key]:.3f})" if math.isfinite(ratios.get(key, math.nan)) else ""
            cells[title] = f"{text}{ratio}" if math.isfinite(mine[key]) else "-"
        machines = dict.fromkeys(costs[folder].machine for folder in runs["folder"])
        rows.append(cells | {"machine": "; ".join(machines)})
    return pd.DataFrame(rows)


def equal_time_table(card: Scorecard, costs: dict[str, Cost]) -> pd.DataFrame:
    """Each compared design's difference to the baseline at equal tokens and at equal time, as text."""
    scores = card.scores[card.scores["metric"] == card.yardstick.name].set_index("name")
    differences = scores["difference"].dropna()
    rows = []
    for row in card.rows[~card.rows["baseline"] & ~card.rows["given"]].itertuples():
        if row.name not in differences.index:
            continue
        found = at_equal_time(card, row.name, costs)
        text = (
            f"{np.mean(found.differences):+.4f}" if found.differences else f"cannot be said: {found.reason}"
        )
        if len(found.differences) > 1:
            text += f"\n{min(found.differences):+.4f} to {max(found.differences):+.4f}"
        rows.append(
            {
                "design": row.name,
                "at equal tokens": f"{differences[row.name]:+.4f}",
                "at equal time": text,
                "tokens by then": f"{np.mean(found.done):.1%}" if found.done else "-",
            }
        )
    return pd.DataFrame(rows)


def at_equal_time(card: Scorecard, name: str, costs: dict[str, Cost]) -> EqualTime:
    """A design's loss against the baseline's last one, at the time at which that run had finished."""
    pairs = _pairs(card, name)
    both = list(zip(pairs["record"], pairs["record_baseline"], strict=True))
    if reason := _incomparable(both, costs):
        return EqualTime(reason=reason)
    last = pairs[card.yardstick.name] - pairs[f"{card.yardstick.name}_baseline"]
    differences, done = [], []
    for difference, (mine, its) in zip(last, both, strict=True):
        limit = training_hours(its).iloc[-1]
        curve = validations(mine, card.yardstick)
        if len(curve) < 2 or limit < curve["hours"].iloc[0]:
            return EqualTime(reason="it was not validated before that time")
        then = np.interp(limit, curve["hours"], curve["loss"])
        differences.append(float(difference + then - curve["loss"].iloc[-1]))
        tokens = mine.train["tokens"].to_numpy()
        done.append(float(np.interp(limit, training_hours(mine), tokens) / tokens[-1]))
    return EqualTime(differences, done)


def unsteady_line(card: Scorecard, costs: dict[str, Cost]) -> str:
    """Whose step times say that the machine had other work; empty where none do."""
    factors = {}
    for name in baseline_first(card)["name"]:
        runs = _counted(card, name)
        factors[name] = unsteadiness([costs[folder] for folder in runs["folder"] if folder in costs])
    unsteady = ", ".join(f"{name} by {factor:.2f}" for name, factor in factors.items() if factor > STEADY)
    if not unsteady:
        return ""
    return (
        f"Other work ran beside: step times vary within a run or between seeds, of {unsteady} times. Do not "
        "rely on these speeds; for speeds, train on a machine that does nothing else."
    )


def time_chart(card: Scorecard) -> Chart | None:
    """Validation loss over hours of training, the mean of each design's runs, and each run's last loss."""
    colours, figure = design_colours(card), go.Figure()
    hours: list[list[float]] = []
    tokens: list[list[float]] = []
    late: dict[bool, list[float]] = {True: [], False: []}
    taken: list[str] = []
    counted = set(card.runs.loc[card.runs["counted"], "name"])
    for name in baseline_first(card)["name"]:
        curves = [validations(record, card.yardstick) for record in _counted(card, name)["record"]]
        curves = [curve for curve in curves if len(curve)]
        if not curves:
            continue
        mean = pd.concat(curves).groupby("tokens", as_index=False).mean()
        last = pd.concat([curve.tail(1) for curve in curves])
        style: dict[str, Any] = {"name": escape(name, quote=False), "legendgroup": name}
        taken.append(colours[name])
        dash = DASHES[(taken.count(colours[name]) - 1) % len(DASHES)]
        line = {"color": colours[name], "width": 2, "dash": dash}
        figure.add_scatter(x=mean["hours"], y=mean["loss"], mode="lines", line=line, **style)
        marker = {"color": colours[name], "size": 8}
        figure.add_scatter(
            x=last["hours"], y=last["loss"], mode="markers", marker=marker, showlegend=False, **style
        )
        hours += [mean["hours"].tolist(), last["hours"].tolist()]
        tokens += [mean["tokens"].tolist(), last["tokens"].tolist()]
        of_name = [*mean.loc[mean["tokens"] > EARLY * mean["tokens"].max(), "loss"], *last["loss"]]
        late[name in counted] += of_name
    if not hours:
        return None
    shown = late[True] or late[False]  # what diverged must not flatten the others
    margin = 0.05 * (max(shown) - min(shown)) or 0.05
    unit = _unit(card)
    figure.update_xaxes(title="hours")
    figure.update_yaxes(title=unit, range=[min(shown) - margin, max(shown) + margin])
    return Chart(
        name="loss-over-hours",
        title=f"Validation loss over hours of training ({unit})",
        figure=figure,
        about="Each line is the mean of a design's runs, each dot the last loss of one run. A line that ends "
        "further to the left was cheaper to train; the lower line at the same hour makes more of its time.",
        axes={"hours": hours, "tokens": tokens},
        logs="x",
    )


def _unit(card: Scorecard) -> str:
    return card.yardstick.unit.replace("/", " per ")


def _counted(card: Scorecard, name: str) -> pd.DataFrame:
    """A row's finished runs, or all of them where none has finished."""
    runs = card.runs[card.runs["name"] == name]
    return runs[runs["counted"]] if runs["counted"].any() else runs


def _pairs(card: Scorecard, name: str) -> pd.DataFrame:
    counted = card.runs[card.runs["counted"]]
    mine = counted[counted["name"] == name]
    return pair_up(mine, counted[counted["baseline"]], card.baseline, card.yardstick).pairs


def _ratios(card: Scorecard, row: Any, costs: dict[str, Cost]) -> dict[str, float]:
    """Each figure's mean over the pairs of runs, over the baseline's."""
    pairs = pd.DataFrame() if row.baseline else _pairs(card, row.name)
    if pairs.empty or pairs["given_baseline"].any():
        return {}
    mine, its = (
        pd.DataFrame([costs[folder].figures for folder in pairs[column]]).mean()
        for column in ("folder", "folder_baseline")
    )
    return (mine / its).to_dict()


def _incomparable(pairs: list[tuple[RunRecord, RunRecord]], costs: dict[str, Cost]) -> str:
    arms = [[costs[str(record.folder)] for record in arm] for arm in zip(*pairs, strict=True)]
    machines = [", ".join(dict.fromkeys(cost.machine for cost in arm)) for arm in arms]
    if machines[0] != machines[1]:
        return f"other machines ({machines[0]} beside {machines[1]})"
    if any(not math.isfinite(cost.figures["step_s"]) for arm in arms for cost in arm):
        return "metrics.jsonl has no step times"
    if any(unsteadiness(arm) > STEADY for arm in arms):
        return "other work ran beside"
    return ""


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _short(number: float) -> str:
    """45.2 M for 45200000."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g} {letter}"
    return f"{number:.4g}"
