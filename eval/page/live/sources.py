"""The folders that a page is about: what they hold now, read again only where their files have changed."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import UserError
from training.run.reader import is_being_trained

from ...evidence.results import RunRecord, read_run

if TYPE_CHECKING:
    from ...studies.findings.reading import StudyRecord

NOT_SHOWN = ("checkpoints", "logs", "wandb")
"""Folders of a run of which a page shows nothing."""
Stamp = tuple[tuple[str, int, int], ...]
"""Path, time of change and size of each file of a folder."""


@dataclass(frozen=True)
class Reading:
    """What the folders held when they were read.

    Attributes:
        study: the study; None where runs were given.
        runs: those that could be read, by folder.
        under_way: those that are being trained.
        problems: a sentence for each that could not be read.
    """

    study: "StudyRecord | None"
    runs: dict[Path, RunRecord]
    under_way: frozenset[Path]
    problems: tuple[str, ...]


class Sources:
    """Runs, or one study.

    Args:
        folders: as they were given.

    Raises UserError where a study stands beside another folder.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(dict.fromkeys(folders))
        self.study = next(filter(is_study, self.folders), None)
        if self.study is not None and len(self.folders) > 1:
            raise UserError(f"{self.study} is a study, which has its runs itself: give its folder alone")
        self._known: dict[Path, tuple[tuple[Stamp, bool], RunRecord]] = {}
        self._study: tuple[Stamp, StudyRecord] | None = None

    def stamps(self) -> dict[Path, tuple[Stamp, bool]]:
        """What tells whether anything has changed: of each folder its files, and whether it is trained."""
        found = {folder: (stamp(folder), is_under_way(folder)) for folder in self._runs()}
        if self.study is not None:
            found[self.study] = (stamp(self.study), False)
        return found

    def read(self, strictly: bool = False) -> Reading:
        """What the folders hold now.

        Args:
            strictly: raise UserError or OSError for what cannot be read, instead of leaving it out.
        """
        problems: list[str] = []
        study = None
        try:
            study = self._read_study()
        except (UserError, OSError) as error:
            if strictly:
                raise
            problems.append(str(error))
            study = self._study[1] if self._study else None
        runs: dict[Path, RunRecord] = {}
        for folder in self._runs():
            try:
                runs[folder] = self._read_run(folder, whole=not strictly)
            except Exception as error:  # what is being written may hold anything
                if strictly:
                    raise
                problems.append(f"{folder} could not be read: {error}")
        under_way = frozenset(folder for folder in runs if is_under_way(folder))
        return Reading(study, runs, under_way, tuple(problems))

    def _runs(self) -> tuple[Path, ...]:
        if self.study is None:
            return self.folders
        record = self._study[1] if self._study else None
        found = (record.folder_of(run) for run in record.runs) if record else ()
        return tuple(dict.fromkeys(folder for folder in found if folder is not None))

    def _read_study(self) -> "StudyRecord | None":
        if self.study is None:
            return None
        from ...studies.findings.reading import read_study_record  # scipy costs seconds

        now = stamp(self.study)
        if self._study is None or self._study[0] != now:
            self._study = now, read_study_record(self.study)
        return self._study[1]

    def _read_run(self, folder: Path, whole: bool) -> RunRecord:
        now = stamp(folder), is_under_way(folder)  # on which its status depends
        known = self._known.get(folder)
        if known is None or known[0] != now:
            record = read_run(folder)
            if whole:  # what cannot be read is found here, where it is known whose it is
                _ = record.metrics, record.settings, record.scores
                _ = record.items, record.documents, record.slices
            self._known[folder] = known = now, record
        return known[1]


def is_study(folder: Path) -> bool:
    """Whether a folder is a study's."""
    return (folder / "registration.json").exists()


def stamp(folder: Path) -> Stamp:
    """Of the files of a folder that a page may show; empty where there is none."""
    return tuple(sorted(_files(folder, folder)))


def is_under_way(folder: Path) -> bool:
    """Whether a run is being trained now."""
    try:
        return is_being_trained(folder)
    except OSError:  # its folder went away
        return False


def _files(folder: Path, root: Path) -> Iterator[tuple[str, int, int]]:
    try:
        entries = [*os.scandir(folder)]
    except OSError:  # it went away
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name.endswith(".lock"):
            continue
        try:
            if entry.is_dir():
                if folder != root or entry.name not in NOT_SHOWN:
                    yield from _files(Path(entry), root)
            else:
                facts = entry.stat()
                yield os.path.relpath(entry, root), facts.st_mtime_ns, facts.st_size
        except OSError:  # it was replaced
            continue
