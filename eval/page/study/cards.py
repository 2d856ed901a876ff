"""The runs of a study as the page shows any runs: each size's, at the shared rate."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from plotly import graph_objects as go

from ...evidence.results import RunRecord
from ...studies.findings.reading import StudyRecord, StudySize
from ..blocks import Chart, Section


def sizes_with_runs(record: StudyRecord) -> list[StudySize]:
    """The sizes of which runs are there: the one that is judged first, then the others, the largest first."""
    there = [size for size in reversed(record.sizes) if judged_folders(record, size)]
    return sorted(there, key=lambda size: size is not record.largest)


def judged_folders(record: StudyRecord, size: StudySize) -> dict[Path, str]:
    """The designs of the runs that are judged at the shared rate, by their folders, those under way too; the
    baseline again is left out, which would count as the baseline."""
    found = {
        record.folder_of(run): run.design
        for run in record.runs
        if (run.size, run.rate, run.role) == (size.size, size.shared_rate, "judged")
        and not record.is_noise(run.design)
    }
    return {folder: design for folder, design in found.items() if folder is not None}


def recoloured(section: Section, colours: Mapping[str, str]) -> Section:
    """A section whose charts have other colours of the style sheet in the place of these."""

    def changed(content: Any) -> Any:
        if isinstance(content, str):
            return colours.get(content, content)
        if isinstance(content, dict):
            return {key: changed(value) for key, value in content.items()}
        return [*map(changed, content)] if isinstance(content, list | tuple) else content

    def drawn(block: Chart) -> Chart:
        return replace(block, figure=go.Figure(changed(block.figure.to_dict())))

    blocks = [drawn(block) if isinstance(block, Chart) else block for block in section.blocks]
    return replace(section, blocks=blocks)


def baseline_variant(record: StudyRecord, size: StudySize, runs: dict[Path, RunRecord]) -> str | None:
    """What its runs call the baseline: a design of a file may have another name there."""
    for run in record.runs:
        folder = record.folder_of(run) if (run.size, run.design) == (size.size, record.baseline) else None
        if folder in runs:
            return str(runs[folder].summary["variant"])
    return None
