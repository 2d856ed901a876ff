"""`data.files`: the files of a source by name, so that no other is opened, nor listed where names are enough.

A pattern has `*`, `?`, `[..]`, `**` and bash's braces, `shard_{00000..00129}.parquet`. The order of the files
is that of their names, however the pattern says them.
"""

import glob
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from braceexpand import braceexpand

from model.errors import UserError

from ..config import DataConfig
from ..parallel import side_by_side
from ..tokenizer import Tokenizer
from .choices import refuse_options
from .documents import Source
from .places import FILE_FORMATS, file_format, is_hub_id, is_remote
from .token_shards import manifest_of

REQUESTS_AT_ONCE = 16
LARGEST_RANGE = 100_000
"""More names than this are a slip of the pen."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_URL = re.compile(
    r"hf://datasets/(?P<id>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<files>.*))?"
)


def hub_files(config: DataConfig, key: str) -> DataConfig:
    """The config with `hf://datasets/OWNER/NAME@REVISION/PATTERN` taken apart; any other as it is.

    Raises UserError for an `hf://` URL of anything else, and for a revision or files that are named twice.
    """
    if not config.source.startswith("hf://"):
        return config
    parts = _HUB_URL.fullmatch(config.source)
    if parts is None or not is_hub_id(parts["id"]):
        raise UserError(f"{key} is {config.source}, but it must look like hf://datasets/OWNER/NAME/PATTERN")
    revision = unquote(parts["revision"]) if parts["revision"] else None
    files = parts["files"] or None
    if _COMMIT.fullmatch(config.revision or "") and not _COMMIT.fullmatch(revision or ""):
        revision = None  # the branch or tag whose commit is given
    for option, found in {"revision": revision, "files": files}.items():
        given = getattr(config, option)
        if found is not None and given is not None:
            raise UserError(f"data.{option} is {given!r}, but {key} {config.source} has {found!r} itself")
    return replace(
        config, source=parts["id"], revision=revision or config.revision, files=files or config.files
    )


def refuse_names(config: DataConfig, key: str) -> None:
    """Raise UserError for `data.files` that cannot be a choice of the source's files, wherever it lies."""
    if config.files is None:
        return
    place, source = Path(config.source).expanduser(), config.source
    if (
        source == "sample"
        or not (place.is_dir() or is_remote(source) or is_hub_id(source))
        or place.is_file()
    ):
        raise UserError(f"data.files chooses from a folder, a hub id or a URL, but {key} is {source}")
    if place.is_dir() and manifest_of(place) is not None:
        raise UserError(f"data.files cannot choose from the token shards in {source}: leave it out")
    if config.subset is not None:
        raise UserError(f"data.files and data.subset both choose files of {source}: leave one of them out")
    if config.split != DataConfig.split and key == "data.source":
        raise UserError(f"data.split is {config.split!r}, but data.files says which files are read")
    names = _names(config.files, _label(key))
    if source.startswith(("http://", "https://")) and any(map(glob.has_magic, names)):
        raise UserError(f"data.files is {config.files}, but a web server does not list files: name each")


def open_named_files(config: DataConfig, tokenizer: Tokenizer, key: str) -> Source:
    """The documents of the files that `data.files` names.

    Args:
        config: The source, and which of its files.
        tokenizer: For .bin files, which hold tokens.
        key: The option that names the source, for messages.

    Raises:
        UserError: a file that is named is not there, a pattern matches none, or they are no documents.
        OSError: the hub or a server cannot be reached, or does not give it.
    """
    assert config.files is not None
    label = _label(key)
    names = _names(config.files, label)
    folder = Path(config.source).expanduser()
    storage_options: dict[str, Any] = {}
    revision: str | None = None
    notes: list[str] = []
    if folder.is_dir():
        refuse_options(config, key)
        found = {name: _in_folder(folder, name) for name in names}
    elif is_remote(config.source):
        refuse_options(config, key)
        found = _at_url(config, names)
    else:
        found, storage_options, revision, notes = _on_hub_or_disk(config, key, names)
    missing = [name for name in names if not found[name]]
    if missing and len(names) == 1:
        raise UserError(f"{label}: {config.source} has no file {missing[0]}")
    if missing:
        raise UserError(
            f"{label}: {len(missing):,} of the {len(names):,} files that {config.files} names are not in "
            f"{config.source}, the first is {missing[0]}"
        )
    paths = sorted({path for one in found.values() for path in one})
    source = _read(config, tokenizer, paths, storage_options, revision)
    source.notes += notes
    return source


def _label(key: str) -> str:
    """The option that says the names: the source of validation has its own in its URL."""
    return "data.files" if key == "data.source" else key


def _names(pattern: str, label: str) -> list[str]:
    """What a pattern says once its braces are gone, each name once. Raises UserError."""
    try:
        names = list(dict.fromkeys(islice(braceexpand(pattern, escape=False), LARGEST_RANGE + 1)))
    except ValueError as error:
        raise UserError(f"{label}: {pattern} lacks a brace") from error
    if len(names) > LARGEST_RANGE:
        raise UserError(f"{label}: {pattern} names more than {LARGEST_RANGE:,} files")
    for name in names:
        if not name or name.startswith("/") or "://" in name or ".." in PurePosixPath(name).parts:
            raise UserError(f"{label}: {pattern} must name files below the source, and no {name!r}")
    return names


def _in_folder(folder: Path, name: str) -> list[str]:
    """The paths of the files of a folder that a name or pattern means."""
    pattern = str(folder.absolute() / name)
    if not glob.has_magic(name):
        return [pattern] if Path(pattern).is_file() else []
    pattern = str(Path(glob.escape(str(folder.absolute())), name))
    return [path for path in glob.glob(pattern, recursive=True) if Path(path).is_file()]


def _at_url(config: DataConfig, names: Sequence[str]) -> dict[str, list[str]]:
    """The URLs of the files that each name or pattern means; a web server is asked for each of them."""
    from .network import filesystem_of, is_not_there, with_retries

    url, timeout_s = config.source.rstrip("/"), config.timeout_s

    def urls(name: str) -> list[str]:
        path = f"{url}/{name}"
        filesystem, location = filesystem_of(path, {})
        if glob.has_magic(name):
            found = with_retries(lambda: filesystem.glob(location), path, timeout_s, opening=True)
            return [filesystem.unstrip_protocol(one) for one in found]
        if not url.startswith(("http://", "https://")):
            return [path] if with_retries(lambda: filesystem.exists(location), path, timeout_s) else []
        try:
            with_retries(lambda: filesystem.info(location), path, timeout_s, opening=True)
        except ConnectionError as error:
            if is_not_there(error):
                return []
            raise
        return [path]

    return dict(zip(names, side_by_side(urls, names, REQUESTS_AT_ONCE), strict=True))


def _on_hub_or_disk(
    config: DataConfig, key: str, names: Sequence[str]
) -> tuple[dict[str, list[str]], dict[str, Any], str | None, list[str]]:
    """The files that each name or pattern means, the options of their file system, the commit, and what a
    user should know: where the hub cannot be reached, the hub's cache on this disk may have them."""
    from .network import Unreadable
    from .remote import check_copy, copy_on_disk, files_on_hub, hub_commit

    try:
        revision = hub_commit(config, key)
        return *files_on_hub(config, revision, names), revision, []
    except Unreadable as error:
        copy = copy_on_disk(config, error)
        found = {name: _in_folder(copy.folder, name) for name in names}
        if not all(found.values()):
            raise
        check_copy(copy, config, [path for one in found.values() for path in one], error)
        return found, {}, copy.commit, [copy.note(key)]


def _read(
    config: DataConfig,
    tokenizer: Tokenizer,
    paths: list[str],
    storage_options: dict[str, Any],
    revision: str | None,
) -> Source:
    formats = {_format(path) for path in paths}
    if len(formats) > 1 or None in formats:
        ends = ", ".join(sorted({PurePosixPath(path).suffix or "no suffix" for path in paths}))
        raise UserError(
            f"data.files: {config.files} must name files of one format, {', '.join(FILE_FORMATS)} (perhaps "
            f"compressed) or local .bin, but their names end in {ends}"
        )
    if formats == {"bin"}:
        from .bin_files import BinFiles

        return BinFiles(config, tokenizer, paths)
    if formats == {"json"}:
        from .jsonl import JsonlSource

        return JsonlSource(config, paths, storage_options, revision)
    from .parquet import ParquetSource

    return ParquetSource(config, paths, storage_options, revision)


def _format(path: str) -> str | None:
    return "bin" if path.endswith(".bin") and not is_remote(path) else file_format(path)
