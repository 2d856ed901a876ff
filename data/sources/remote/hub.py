"""A data set on the Hugging Face hub: which commit is read, and its copy on this disk."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    HfHubHTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
)

from model.errors import UserError

from ...config import DataConfig
from ..choices import LOCAL_CHOICES
from ..network import PASSING_STATUSES, Refused, Unreadable, in_thread, result_of

ASK_SECONDS = 10
"""So long the hub may take to say which commit a data set has."""
LISTING_TIMEOUTS = 10
"""Listing a large data set is many requests, which may take so many `data.timeout_s`."""
_PART_OF = re.compile(r"(.*-)(\d{5})-of-(\d{5})(.*)")

T = TypeVar("T")


class HubCopy(NamedTuple):
    """What the hub's cache on this disk has of a data set."""

    folder: Path
    commit: str

    def note(self, key: str) -> str:
        """What a user should know of it."""
        return f"{key}: the hub cannot be reached: the copy of commit {self.commit} in {self.folder} is read."


def hub_commit(config: DataConfig, key: str) -> str | None:
    """The commit of a data set on the hub, which the run then stays with; a revision that is one stays it.

    Asked once: `datasets` would spend half a minute on retries when there is no network. Whatever the hub
    answers is a ConnectionError, with which a run that has a `data.cache_dir` goes on.
    """
    where = _where(config)
    seconds = min(ASK_SECONDS, config.timeout_s)

    def ask() -> str | None:
        return HfApi().dataset_info(config.source, revision=config.revision, timeout=seconds).sha

    try:
        return result_of(in_thread(ask), config.timeout_s)
    except HfHubHTTPError as error:
        status = error.response.status_code
        refused = status < 500 and status not in PASSING_STATUSES - {404}
        raise (Refused if refused else Unreadable)(
            f"{key}: the Hugging Face hub does not give {where} (HTTP {status}): "
            "it does not exist, or it needs a token that may read it"
        ) from error
    except Exception as error:  # the network's exceptions change with the HTTP library of huggingface_hub
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else type(error).__name__
        raise Unreadable(
            f"{key}: {where} is no file or folder here, and the Hugging Face hub cannot be reached "
            f"({why}); without a network use {LOCAL_CHOICES}"
        ) from error


def listed_by_hub(ask: Callable[[], T], config: DataConfig, key: str) -> T:
    """What many requests to the hub give.

    Raises:
        ConnectionError: the hub fails, or does not end answering.
        FileNotFoundError, ValueError: what `ask` raises of what it found.
    """
    try:
        return result_of(in_thread(ask), LISTING_TIMEOUTS * config.timeout_s)
    except (FileNotFoundError, ValueError, UserError):
        raise
    except Exception as error:
        raise Unreadable(
            f"{key}: the Hugging Face hub does not list the files of {_where(config)} "
            f"({type(error).__name__}): once it does, the same command goes on from there"
        ) from error


def copy_on_disk(config: DataConfig, error: Unreadable) -> HubCopy:
    """The copy of a data set, at the revision asked for, that the hub's cache has.

    Raises:
        ConnectionError: `error`, where the hub has refused the data set or the cache has no copy.
    """
    if isinstance(error, Refused):
        raise error
    try:
        folder = snapshot_download(
            config.source, repo_type="dataset", revision=config.revision, local_files_only=True
        )
    except IncompleteSnapshotError as incomplete:  # of all files, of which the run may not need every one
        folder = incomplete.snapshot_path
    except (LocalEntryNotFoundError, ValueError):
        raise error from error.__cause__
    return HubCopy(Path(folder), Path(folder).name)


def check_copy(copy: HubCopy, config: DataConfig, paths: Sequence[str], error: Unreadable) -> None:
    """Raise ConnectionError where the copy lacks files that are like those that are read of it."""
    names = [Path(path).relative_to(copy.folder).as_posix() for path in paths]
    lacking = sorted(_expected(config.source, copy.commit, names) - set(names))
    unfinished = any(copy.folder.parents[1].glob("blobs/*.incomplete"))
    if lacking or unfinished:
        what = "was not finished"
        if lacking:
            what = f"lacks {len(lacking)} file{'s' * (len(lacking) > 1)}, such as {lacking[0]}"
        raise ConnectionError(
            f"the hub cannot be reached, and the copy of {config.source} in {copy.folder} {what}: "
            "once the hub can be reached, the same command goes on from there"
        ) from error


def _expected(repo: str, commit: str, names: Sequence[str]) -> set[str]:
    """The files that are like those that are read: by the hub's list where the cache has it, or by number."""
    try:
        tree = get_cached_repo_tree(repo, repo_type="dataset", revision=commit)
    except CachedRepoTreeNotFoundError:
        parts = [match for name in names if (match := _PART_OF.fullmatch(name))]
        return {
            f"{part[1]}{number:05d}-of-{part[3]}{part[4]}" for part in parts for number in range(int(part[3]))
        }
    read = {_form(name) for name in names}
    return {file.path for file in tree if _form(file.path) in read}


def _form(name: str) -> tuple[str, str]:
    """A file's folder, and its name without the numbers in it."""
    path = PurePosixPath(name)
    return str(path.parent), re.sub(r"\d+", "0", path.name)


def _where(config: DataConfig) -> str:
    return config.source if config.revision is None else f"{config.source} at revision {config.revision}"
