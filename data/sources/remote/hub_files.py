"""Files of a data set on the hub by their names, so that no other is listed where names are enough."""

import glob
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

from fsspec.utils import glob_translate
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import tqdm

from ...config import DataConfig
from ..network import KNOWN_FILES, Tries, filesystem_of, in_thread, result_of, with_retries
from ..places import is_left_out
from .footer_store import alone
from .ranges import HUB_FILE

NAMES_PER_REQUEST = 500
constants.DOWNLOAD_CHUNK_SIZE = 2**16  # so much has come before the hub's client says that something has


def files_on_hub(
    config: DataConfig, revision: str | None, names: Sequence[str]
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The URLs of the files that each name or pattern means, and the options of a file system for them.

    Names are asked for by the hundred; only for patterns a folder is listed. The hub's file system would list
    the folder of every file that it opens: one of its own, for these files alone, is told of them.
    """
    repo, timeout_s = config.source, config.timeout_s
    exact = [name for name in names if not glob.has_magic(name)]
    found: dict[str, list[RepoFile]] = {name: [] for name in names}
    for start in range(0, len(exact), NAMES_PER_REQUEST):
        for file in _infos(repo, revision, exact[start : start + NAMES_PER_REQUEST], timeout_s):
            found.setdefault(file.path, []).append(file)
    for name in names:
        if glob.has_magic(name):
            found[name] = list(_matching(repo, revision, name, timeout_s))
    root = f"datasets/{repo}@{revision}"
    known: dict[str, list[dict[str, Any]]] = {}
    for file in {file.path: file for one in found.values() for file in one}.values():
        place = f"{root}/{file.path}"
        known.setdefault(place.rpartition("/")[0], []).append(
            {"name": place, "type": "file", "size": file.size, "blob_id": file.blob_id, "lfs": file.lfs}
            | {"xet_hash": file.xet_hash, "last_commit": None, "security": None}
        )
    which = hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()
    KNOWN_FILES[which] = known
    options = {"hf": {"known_files": which}}
    filesystem, location = filesystem_of("hf://" + root, options)
    # asks whether the data set is there, before many threads do
    with_retries(lambda: filesystem.info(location), "hf://" + root, timeout_s, opening=True)
    return {name: [f"hf://{root}/{file.path}" for file in one] for name, one in found.items()}, options


def keep_hub_files(paths: Sequence[str], timeout_s: float) -> None:
    """Have the hub's cache on this disk keep those of `paths` that are on the hub, so that `datasets` finds
    them there: it would itself wait for ever on a line that trickles.

    Raises:
        ConnectionError: one cannot be fetched for `timeout_s`.
    """
    files = [file for file in map(HUB_FILE.fullmatch, paths) if file]
    if files:
        with alone():
            for file in files:
                _keep(file, timeout_s)


def _keep(file: re.Match[str], timeout_s: float) -> None:

    class Bar(tqdm):
        """Counts the bytes that come."""

        came = 0

        def update(self, n: float | None = 1) -> bool | None:
            Bar.came += int(n or 0)
            return super().update(n)

    def fetch() -> str:
        repo, name, revision = file["repo"], file["name"], unquote(file["revision"])
        return HfApi().hf_hub_download(repo, name, repo_type="dataset", revision=revision, tqdm_class=Bar)

    tries = Tries(file[0], timeout_s, opening=True)
    while True:
        before = Bar.came
        try:
            result_of(in_thread(fetch), timeout_s, lambda: Bar.came)
            return
        except Exception as error:
            tries.wait_after(error, Bar.came - before)


def _infos(repo: str, revision: str | None, names: list[str], timeout_s: float) -> list[RepoFile]:
    """What the hub says of the files that there are of these names."""
    infos = with_retries(
        lambda: HfApi().get_paths_info(repo, names, revision=revision, repo_type="dataset"),
        f"hf://datasets/{repo}",
        timeout_s,
        opening=True,
    )
    return [info for info in infos if isinstance(info, RepoFile)]


def _matching(repo: str, revision: str | None, pattern: str, timeout_s: float) -> Iterator[RepoFile]:
    """The files that match a pattern, of the folder that all of them must be in."""
    parts = pattern.split("/")
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    folder, is_deep = "/".join(parts[:plain]), plain < len(parts) - 1

    def listed() -> list[Any]:
        try:
            tree = HfApi().list_repo_tree(
                repo, folder or None, recursive=is_deep, revision=revision, repo_type="dataset"
            )
            return list(tree)
        except EntryNotFoundError:
            return []

    matches = re.compile(glob_translate(pattern)).match
    for info in with_retries(listed, f"hf://datasets/{repo}", timeout_s, opening=True):
        if isinstance(info, RepoFile) and matches(info.path) and not is_left_out(info.path, pattern):
            yield info
