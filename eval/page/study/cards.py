"""The runs of a study as the page shows any runs: each size's, at the shared rate."""

from pathlib import Path

from ...evidence.results import RunRecord
from ...studies.findings.reading import StudyRecord, StudySize


def sizes_with_runs(record: StudyRecord) -> list[StudySize]:
    """The sizes of which runs are there: the one that is judged first, then the others, the largest first."""
    there = [size for size in reversed(record.sizes) if judged_folders(record, size)]
    return sorted(there, key=lambda size: size is not record.largest)


def judged_folders(record: StudyRecord, size: StudySize) -> list[Path]:
    """Of the runs that are judged at the shared rate, those under way too; the baseline with other seeds is
    left out, which would count as the baseline."""
    found = [
        record.folder_of(run)
        for run in record.runs
        if (run.size, run.rate, run.role) == (size.size, size.shared_rate, "judged")
        and not record.is_noise(run.design)
    ]
    return [folder for folder in found if folder is not None]


def baseline_variant(record: StudyRecord, size: StudySize, runs: dict[Path, RunRecord]) -> str | None:
    """What its runs call the baseline: a design of a file may have another name there."""
    for run in record.runs:
        folder = record.folder_of(run) if (run.size, run.design) == (size.size, record.baseline) else None
        if folder in runs:
            return str(runs[folder].summary["variant"])
    return None
