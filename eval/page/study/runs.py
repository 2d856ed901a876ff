"""The runs of a study: what they cost, which failed, how many there are of each kind, what was registered."""

from collections.abc import Iterator
from statistics import fmean, stdev

import pandas as pd

from ...studies.findings.reading import StudyRecord, StudyRun
from ...studies.findings.tables import COST_TITLES, cost_cells, failure_sentences
from ..blocks import Section, Sentences, Table
from .words import estimated, millions


def cost_section(record: StudyRecord) -> Section:
    """Each size's costs beside the baseline's, and the hours of all runs."""
    blocks: list[Table | Sentences] = []
    for size in reversed(record.sizes):
        rows = [row for row in record.rows_of(size.size) if row.cost]
        if not rows:
            continue
        cells = [cost_cells(row) for row in rows]
        over = [
            f"{row.design} is over budget in {' and '.join(row.cost.over_budget)}"
            for row in rows
            if row.cost and row.cost.over_budget
        ]
        note = f"In brackets times {record.baseline}'s. Step time in seconds, memory in GiB per rank."
        frame = pd.DataFrame(cells, columns=["design", *COST_TITLES.values()])
        blocks.append(Table(frame, f"Costs at size {size.size}", note))
        if over:
            blocks.append(Sentences(over))
    timed = [run for run in record.runs if run.wall_time_s]
    if timed:
        hours = sum(run.wall_time_s or 0 for run in timed) / 3600
        tokens = {size.size: size.tokens for size in record.sizes}
        trained = millions(sum(tokens[run.size] for run in timed))
        blocks.append(Sentences([f"{len(timed)} runs took {hours:.2f} hours for {trained} tokens."]))
    return Section("study-costs", "Costs", [*blocks])


def failure_section(record: StudyRecord) -> Section:
    """Runs without a loss, with their reasons; designs that the pre-flight check refused."""
    judged = [sentence for size in record.sizes for sentence in failure_sentences(record.rows_of(size.size))]
    others = [
        f"{run.design} at rate {run.rate}, size {run.size}, seed {run.seed}: {run.reason or run.status}"
        for run in record.runs
        if run.status and not run.is_finished and (run.role == "selection" or not _has_verdict(record, run))
    ]
    lines = [*dict.fromkeys([*judged, *others])]
    return Section("study-failures", "Failures", [Sentences(lines)] if lines else [], "warning")


def part_section(record: StudyRecord) -> Section:
    """What each part of a composite adds at the shared rate."""
    cells = [
        [part.size, part.part, *(estimated(one) if one else "" for one in (part.alone, part.to_the_others))]
        for part in record.parts
    ]
    frame = pd.DataFrame(cells, columns=["size", "part", "alone", "to all others"])
    note = "Differences at the shared rate, in nats per token; below zero is better."
    return Section("study-parts", "What each part adds", [Table(frame, note=note)] if cells else [])


def registration_section(record: StudyRecord) -> Section:
    """What was fixed before the first run, when, and what departed from it."""
    there = record.registration
    rules = pd.DataFrame(
        [[name.replace("_", " "), _rule(value)] for name, value in vars(record.rules).items()],
        columns=["rule", "value"],
    )
    lines = [*there.sentences(), f"the whole hash: {there.sha256}"]
    if not there.departures:
        lines.append("nothing departed from it")
    return Section("study-registration", "Registration", [Sentences(lines), Table(rules, "Rules")])


def comparison_section(record: StudyRecord) -> Section:
    """What was to be compared, as it was registered."""
    compared = record.registration.plan.get("comparisons")
    blocks = [Sentences(compared)] if compared else []
    return Section("study-comparisons", "Comparisons that were registered", [*blocks], "folded")


def cell_section(record: StudyRecord) -> Section:
    """How many runs of each design and rate have ended, and their losses."""
    cells = [[*line] for line in _cells(record)]
    titles = [
        "design", "size", "rate", "learning rate", "judged", "loss", "deviation", "chose the rate", "failed",
    ]  # fmt: skip
    note = (
        "Runs that have ended, of those known to come; the loss is the mean of the judged runs in nats per "
        "token, with its deviation over seeds."
    )
    return Section(
        "study-runs",
        "Runs per design and rate",
        [Table(pd.DataFrame(cells, columns=titles), note=note)],
        "folded",
    )


def _cells(record: StudyRecord) -> Iterator[list[str]]:
    groups: dict[tuple[str, str, str], list[StudyRun]] = {}
    for run in record.runs:
        groups.setdefault((run.size, run.design, run.rate), []).append(run)
    order = [size.size for size in record.sizes]
    for (size, design, rate), runs in sorted(groups.items(), key=lambda one: order.index(one[0][0])):
        judged = [run for run in runs if run.role == "judged"]
        losses = [run.val_loss for run in judged if run.is_finished]
        yield [
            design,
            size,
            rate,
            f"{runs[0].learning_rate:g}",
            _ended(judged),
            f"{fmean(losses):.4f}" if losses else "",
            f"{stdev(losses):.4f}" if len(losses) > 1 else "",
            _ended([run for run in runs if run.role == "selection"]),
            str(sum(bool(run.status) and not run.is_finished for run in runs) or ""),
        ]


def _ended(runs: list[StudyRun]) -> str:
    return f"{sum(run.status is not None for run in runs)} of {len(runs)}" if runs else ""


def _has_verdict(record: StudyRecord, run: StudyRun) -> bool:
    """Whether a run's failure is told with its design's verdict, or its baseline's."""
    return any(
        (verdict.design, verdict.rate, run.seed in verdict.failed) == (run.design, run.rate, True)
        or (verdict.baseline, verdict.baseline_rate, run.seed in verdict.baseline_failed)
        == (run.design, run.rate, True)
        for row in record.rows_of(run.size)
        for verdict in row.verdicts
    )


def _rule(value: float | bool) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:g}"
