"""What difference seeds alone make: the floor below which a study sees nothing."""

import math
from statistics import stdev

import pandas as pd

from ...studies.findings.reading import StudyRecord, StudySize
from ..blocks import Section, Sentences, Table
from .words import difference


def noise_section(record: StudyRecord) -> Section:
    """How far the baseline's losses lie apart over seeds, and, where the study has it, how far the
    baseline from other first weights lies from it."""
    cells, said = [], []
    for size in reversed(record.sizes):
        losses = _losses(record, size, record.baseline)
        if len(losses) < 2:
            continue
        noise = next((row for row in record.rows_of(size.size) if record.is_noise(row.design)), None)
        found = difference(noise) if noise else ""
        again = _losses(record, size, noise.design) if noise else {}
        pairs = ", ".join(f"{again[seed] - losses[seed]:+.4f}" for seed in losses if seed in again)
        cells.append([size.size, str(len(losses)), f"{stdev(losses.values()):.4f}", pairs, found])
        if noise and noise.last and math.isfinite(noise.last.high - noise.last.low):
            holds = noise.last.low <= 0 <= noise.last.high
            verdict = (
                "holds zero, as it should" if holds else "does not hold zero: doubt verdicts of that size"
            )
            said.append(f"At size {size.size} the interval of {noise.design} {verdict}.")
    titles = ["size", "seeds", "sd over seeds", "against itself, by seed", "and its interval"]
    frame = pd.DataFrame(cells, columns=titles)
    if not any(map(record.is_noise, record.designs)):
        frame = frame.drop(columns=titles[3:])
    note = f"Nats per token, at the shared rate: the deviation of {record.baseline}'s losses over seeds"
    if titles[-1] in frame:
        note += (
            ", and its difference to itself from other first weights; with several rates the interval is "
            "that of its own best"
        )
    blocks: list[Table | Sentences] = [Table(frame, note=f"{note}.")]
    if said:
        blocks.append(Sentences(said))
    return Section("study-noise", "Noise floor", [*blocks] if cells else [])


def _losses(record: StudyRecord, size: StudySize, design: str) -> dict[int, float]:
    """Of a design's judged runs at the shared rate that have finished, by seed."""
    return {
        run.seed: run.val_loss
        for run in record.runs
        if (run.size, run.design, run.rate) == (size.size, design, size.shared_rate)
        and run.role == "judged"
        and run.is_finished
    }
