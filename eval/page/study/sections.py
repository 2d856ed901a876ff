"""All sections of a page about a study, in the order in which they are read."""

from ...studies.findings.reading import StudyRecord
from ..blocks import Section
from ..colours import colours_of
from .noise import noise_section
from .rates import rate_section
from .runs import (
    cell_section,
    comparison_section,
    cost_section,
    failure_section,
    part_section,
    registration_section,
)
from .sizes import gate_section, size_section
from .verdicts import verdict_section
from .words import found_section


def colours_of_study(record: StudyRecord) -> dict[str, str]:
    """The colour of each design, of widened baselines too."""
    arms = [*record.designs, *(name for size in record.sizes for name in size.rates)]
    return colours_of(arms, record.baseline)


def study_sections(record: StudyRecord) -> list[Section]:
    """What was found, what it rests on, and how it came about; sections without content are left out."""
    colours = colours_of_study(record)
    found = [
        found_section(record),
        verdict_section(record, colours),
        failure_section(record),
        part_section(record),
        noise_section(record),
        rate_section(record, colours),
        size_section(record, colours),
        gate_section(record),
        cost_section(record),
        registration_section(record),
        comparison_section(record),
        cell_section(record),
    ]
    return [section for section in found if section.blocks]
