"""What a page holds: about runs, or about a study with the runs that it judges."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...evidence.comparison import build_scorecard
from ...evidence.results import RunRecord
from ...evidence.tables import verdict_lines
from ...studies.findings.reading import StudyRecord
from ..blocks import Chart, Section, Sentences, Table
from ..live.sources import Reading
from ..page import sections_of
from ..runs import design_colours
from .cards import baseline_variant, judged_folders, recoloured, sizes_with_runs
from .sections import colours_of_study, study_sections
from .words import write_headline

JUDGED_ABOVE = ("forest", "validation-loss")
"""Sections with verdicts on fewer runs than the study's, which are not shown beside the study's own."""


@dataclass(frozen=True)
class Contents:
    """A page: the sentence to read if only one is read, what is said below it, and the sections."""

    headline: str
    sections: list[Section]
    summary: Sequence[str] = ()


def contents_of(reading: Reading, baseline: str | None = None) -> Contents:
    """The page about what was read.

    Args:
        reading: of the folders.
        baseline: of runs that are no study: a variant or a row; None takes vanilla, or the first.

    Raises UserError where none of the runs is of the baseline.
    """
    unread = Section("unread", "What could not be read", [Sentences([*reading.problems])], "warning")
    first = [unread] if reading.problems else []
    if reading.study is not None:
        record = reading.study
        return Contents(
            write_headline(record), [*first, *study_sections(record), *_of_its_runs(record, reading.runs)]
        )
    if not reading.runs:
        return Contents("Nothing could be read.", first)
    card = build_scorecard([*reading.runs.values()], baseline)
    return Contents(card.headline, [*first, *sections_of(card)], verdict_lines(card))


def _of_its_runs(record: StudyRecord, runs: dict[Path, RunRecord]) -> list[Section]:
    """The sections of any report for the judged runs of the largest size that is done; those of each other
    size in one that is folded."""
    found: list[Section] = []
    for number, size in enumerate(sizes_with_runs(record)):
        designs = {folder: of for folder, of in judged_folders(record, size).items() if folder in runs}
        baseline = baseline_variant(record, size, runs)
        if baseline is None:
            continue
        card = build_scorecard([runs[folder] for folder in designs], baseline, record.comparisons[size.size])
        # By itself the card would give its designs the colours of others above.
        its, wanted = design_colours(card), colours_of_study(record)
        folders = zip(card.runs["name"], card.runs["record"], strict=True)
        colours = {its[name]: wanted[designs[run.folder]] for name, run in folders}
        title = f"The runs of size {size.size} at the shared rate"
        shown = [section for section in sections_of(card) if section.id not in JUDGED_ABOVE]
        sections = [recoloured(section, colours) for section in shown]
        if number == 0:
            lead = "How these runs went. What they show about their designs stands above, under Verdicts."
            found += [Section("runs-of-size", title, [Sentences([lead])]), *sections]
        else:
            found.append(_folded(sections, title, number))
    return found


def _folded(sections: list[Section], title: str, number: int) -> Section:
    """All of a size's sections in one, whose charts have names of their own."""
    blocks: list[Chart | Table | Sentences] = []
    for section in sections:
        for at, block in enumerate(section.blocks):
            if isinstance(block, Chart):
                blocks.append(replace(block, name=f"{block.name}-{number}"))
            elif at == 0 and not block.title:
                blocks.append(replace(block, title=section.title))
            else:
                blocks.append(block)
    return Section(f"runs-of-size-{number}", title, blocks, "folded")
