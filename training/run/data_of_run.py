"""What a run folder keeps of a run's data, so that it goes on with what it began with.

A command may leave open how many lanes there are and which commit of a data set on the hub is read. The first
start settles both: recipe.yaml holds what was settled, and summary.json what was asked for too.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from data import (
    COMMITS,
    FORM,
    Corpus,
    DataConfig,
    ValidationSet,
    keep_commits,
    settled,
    with_commits_of,
)
from model.errors import UserError

from .folder import RunFolder
from .reader import read_environment, read_recipe

if TYPE_CHECKING:
    from ..engine.ranks import Ranks

LEFT_OPEN = ("lanes", "revision", "validation_revision")
"""The keys of the data section that the first start settles."""


def as_begun(data: DataConfig, folder: RunFolder, say: Callable[[str], object]) -> DataConfig:
    """The data section with what it leaves open, or asks for as the first start did, as the run in this
    folder has it; where none has begun, with the commits that the runs beside it read.

    Raises UserError where the folder's files cannot be read.
    """
    if not (folder.has_begun() and (folder.path / "recipe.yaml").is_file()):
        runs = folder.path.absolute().parent
        of_study = with_commits_of(runs, data)
        if of_study != data:
            commit = of_study.revision or of_study.validation_revision
            say(
                f"the hub's commit {commit} is read, as by the other runs in {runs}: for the newest one "
                f"choose another folder, or remove {runs / COMMITS}"
            )
        return of_study
    recorded = read_recipe(folder.path).get("data") or {}
    asked = folder.summary.get("data_asked", {})
    known = {
        key: recorded[key]
        for key in LEFT_OPEN
        if recorded.get(key) is not None and getattr(data, key) in (None, asked.get(key))
    }
    return replace(data, **known)


def settle_data(
    data: DataConfig, begun: DataConfig, folder: RunFolder, corpus: Corpus, validation: ValidationSet
) -> DataConfig:
    """The data section as it is from now on, where `data` was asked for and `begun` was opened.

    The summary keeps what was asked for, what was settled, and the fingerprints. A run of an older NormLab is
    known by the fingerprint that it would have today, and gets the new one. Raises UserError where the run in
    this folder began on other data.
    """
    before = folder.summary.get("data_fingerprint")
    fingerprint, older = corpus.fingerprints
    if before == older:
        del folder.summary["data_fingerprint"]
    elif before is not None and not before.startswith(FORM):
        raise UserError(_of_older_normlab(folder))
    folder.record_fingerprints("data", data_fingerprint=fingerprint, val_fingerprint=validation.fingerprint)
    as_settled = settled(begun, corpus)
    if folder.rank == 0:
        keep_commits(folder.path.absolute().parent, data, as_settled)
    folder.summary.setdefault("data_asked", {key: getattr(data, key) for key in LEFT_OPEN})
    folder.summary |= {f"data_{key}": getattr(as_settled, key) for key in LEFT_OPEN}
    return as_settled


def differing_data(folder: RunFolder, ranks: "Ranks") -> str | None:
    """A sentence where a rank has opened other data than rank 0, as hosts may each have files of their own.

    All ranks call it.
    """
    keys = ("data_fingerprint", "val_fingerprint", "data_lanes")
    here = [folder.summary[key] for key in keys]
    if not ranks.any(ranks.broadcast(here) != here):
        return None
    return (
        "the ranks find different data under the same data.source: give all hosts the same files, or name a "
        "commit as data.revision"
    )


def _of_older_normlab(folder: RunFolder) -> str:
    """Why a run that an older NormLab began cannot go on."""
    commit = read_environment(folder.path).get("git_commit")
    version = f"git checkout {commit[:12]}" if commit else "the version that began it"
    return (
        f"{folder.path} was begun by an older NormLab, on other data than its recipe finds now, or on "
        f"the same in other shards: finish it with {version}, or choose another --run_dir"
    )
