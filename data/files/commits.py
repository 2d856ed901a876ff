"""Which commits of the hub the runs of one folder read: the first settles it for all that ask the same."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from model.files import write_json

from ..config import DataConfig
from ..sources.named_files import hub_files
from ..sources.places import is_hub_id

COMMITS = "commits.json"
"""The file in a folder of runs: commits by `OWNER/NAME@REVISION`."""


def with_commits_of(runs: Path, config: DataConfig) -> DataConfig:
    """The config with the commits that other runs in the folder `runs` were at, where it leaves them open or
    names a branch or tag."""
    commits = _read(runs)
    found: dict[str, Any] = {key: commits[asked] for key, asked in _asked(config) if asked in commits}
    return replace(config, **found)


def keep_commits(runs: Path, config: DataConfig, settled: DataConfig) -> None:
    """Note the commits that a run settled which asked with `config`; what is noted already stays."""
    found = {asked: getattr(settled, key) for key, asked in _asked(config)}
    found = {asked: commit for asked, commit in found.items() if commit is not None}
    if not found:
        return
    with suppress(OSError), FileLock(runs / f".{COMMITS}.lock"):  # without it each run asks the hub
        commits = _read(runs)
        if not found.keys() <= commits.keys():
            write_json(runs / COMMITS, found | commits)


def _asked(config: DataConfig) -> Iterator[tuple[str, str]]:
    """The sources on the hub that are not at a commit: the key that holds it, and `OWNER/NAME@REVISION`."""
    held_out = config.validation_source
    for key, source, revision in (
        ("revision", config.source, config.revision),
        ("validation_revision", held_out, config.validation_revision),
    ):
        if source is None or Path(source).expanduser().exists():
            continue
        place = hub_files(DataConfig(source=source, revision=revision), f"data.{key}")
        branch = place.revision or "main"
        if is_hub_id(place.source) and not re.fullmatch("[0-9a-f]{40}", branch):
            yield key, f"{place.source}@{branch}"


def _read(runs: Path) -> dict[str, str]:
    try:
        commits = json.loads((runs / COMMITS).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    known = commits.items() if isinstance(commits, dict) else ()
    return {asked: commit for asked, commit in known if isinstance(commit, str)}
