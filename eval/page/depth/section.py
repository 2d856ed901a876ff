"""The sections by depth: maps of each measure for each design, on one scale, and what layers cost."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from ...evidence.comparison import Scorecard
from ..blocks import Chart, Section, Sentences, Table
from ..colours import COLOURS
from ..runs import design_colours
from .costs import cost_blocks
from .maps import Maps, heat_maps
from .measures import BY_STEP, OF_PAIRS, Measure
from .tables import COLUMNS, every_nth, pair_grid, read_pairs, read_steps, short, step_grid

CELLS = 24_000
"""Of all maps of a page together: some 250 kB."""


class Shown(NamedTuple):
    """A run that stands for its design.

    Attributes:
        name: the design's.
        title: design and seed.
        steps: its diagnostics, perhaps empty.
        checkpoint: the step of its diagnosis; None without one.
        pairs: its diagnosis, empty without one.
    """

    name: str
    title: str
    steps: pd.DataFrame
    checkpoint: int | None
    pairs: pd.DataFrame


def depth_sections(card: Scorecard) -> list[Section]:
    """What happens by depth: what matters most, then what a click opens; none where nothing was measured.

    Of each design it shows one run, the first that has measured something; of more than COLOURS the
    baseline and those with the lowest loss.
    """
    runs = list(_measured_runs(card))
    shown, others = runs[:COLOURS], runs[COLOURS:]
    by_step = [maps for measure in BY_STEP for maps in _step_maps(measure, shown)]
    of_pairs = [maps for measure in OF_PAIRS for maps in _pair_maps(measure, shown)]
    cells = CELLS // max(1, sum(len(maps.grids) for maps in (*by_step, *of_pairs)))
    first = [block for maps in by_step if maps.measure.is_open for block in _blocks(maps, cells)]
    more = [block for maps in by_step if not maps.measure.is_open for block in _blocks(maps, cells)]
    pairs = [block for maps in of_pairs for block in _blocks(maps, cells)]
    colours = design_colours(card)
    costs = cost_blocks(
        {run.title: run.pairs for run in shown if len(run.pairs)},
        {run.title: colours[run.name] for run in shown},
    )
    sections = [
        Section("depth", "By depth", [*first, *costs]),
        Section("depth-more", "By depth: further measures of training", [*more], "folded"),
        Section("depth-pairs", "By depth: pairs of layers", [*pairs], "folded"),
    ]
    sections = [section for section in sections if section.blocks]
    if sections:
        sections[0].blocks.insert(0, Sentences(_about(shown, others)))
    return sections


def _about(shown: list[Shown], others: list[Shown]) -> list[str]:
    lines = [
        "Of each design one run, the first seed that has measured something: "
        + "; ".join(run.title for run in shown)
        + ".",
        "Maps have the first layer at the bottom, all runs share the colours of a measure, and what was not "
        "measured is blank; touch a cell for its value. The tables are of the last step that was measured.",
    ]
    if others:
        names = ", ".join(run.name for run in others)
        lines.append(f"Not shown, for their losses are higher than those of {len(shown)} designs: {names}.")
    checkpoints = sorted({run.checkpoint for run in shown if run.checkpoint is not None})
    if checkpoints:
        steps = ", ".join(f"{step:,}" for step in checkpoints)
        lines.append(f"Layers left out and pairs of layers: python -m eval.diagnose, at step {steps}.")
    return lines


def _measured_runs(card: Scorecard) -> Iterator[Shown]:
    """The baseline's first, the others by their loss."""
    for name in card.rows.sort_values("baseline", ascending=False, kind="stable")["name"]:
        for run in card.runs[card.runs["name"] == name].itertuples():
            steps, found = read_steps(run.record.folder), read_pairs(run.record.folder)
            if len(steps) or found:
                title = name if run.given else f"{name}, seed {run.init_seed}"
                checkpoint, pairs = found or (None, pd.DataFrame())
                yield Shown(name, title, steps, checkpoint, pairs)
                break


def _step_maps(measure: Measure, shown: list[Shown]) -> Iterator[Maps]:
    """Those of each part of a layer that has the measure; none where all values are 0."""
    of_runs = {run.title: run.steps[run.steps["name"] == measure.name] for run in shown if len(run.steps)}
    there = [part for rows in of_runs.values() for part in rows["part"]]
    parts = [part for part in dict.fromkeys(there) if (part != "" if measure.parts is None else part == "")]
    name = f"depth-{measure.name.replace('_', '-')}"
    for number, part in enumerate(parts, start=1):
        of_part = {title: rows[rows["part"] == part] for title, rows in of_runs.items()}
        grids = {title: step_grid(rows) for title, rows in of_part.items() if len(rows)}
        several = len(parts) > 1
        title = f"{measure.title}, {part}" if several else measure.title
        maps = Maps(f"{name}-{number}" if several else name, title, measure, "step", grids)
        if maps.known.any():
            yield maps


def _pair_maps(measure: Measure, shown: list[Shown]) -> Iterator[Maps]:
    own = 1.0 if measure.name == "cka" else 0.0
    of_runs = {run.title: run.pairs[run.pairs["name"] == measure.name] for run in shown if len(run.pairs)}
    grids = {title: pair_grid(rows, own) for title, rows in of_runs.items() if len(rows)}
    if grids:
        yield Maps(f"depth-{measure.name.replace('_', '-')}", measure.title, measure, "layer", grids)


def _blocks(maps: Maps, cells: int) -> list[Chart | Table]:
    """The maps, and their last columns as numbers: the last step, or each layer beside the last one."""
    head = "run and step" if maps.across == "step" else "with the last layer"
    ends = {
        f"{title}, step {grid.columns[-1]:,}" if maps.across == "step" else title: grid.iloc[:, -1]
        for title, grid in maps.grids.items()
    }
    layers = every_nth(sorted({int(layer) for end in ends.values() for layer in end.index}), COLUMNS)
    rows = [
        {head: title} | {f"layer {layer}": short(end.get(layer, math.nan), 3) for layer in layers}
        for title, end in ends.items()
    ]
    return [heat_maps(maps, cells), Table(pd.DataFrame(rows))]
