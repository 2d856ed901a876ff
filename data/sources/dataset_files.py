"""Folders, files, globs and hub ids, whose files `datasets` finds and, in rare formats, reads."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.text.text import Text

from model.errors import UserError, did_you_mean

from ..config import DataConfig
from ..files.hashes import content_hashes
from ..files.versions import remote_version
from .choices import refuse_options, split_of
from .documents import BadRow, Document, RowGroup, Shard, Source, cut_into_shards
from .jsonl import JsonlSource
from .network import Unreadable, filesystem_of
from .parquet import ParquetSource, check_text_column
from .places import nearest_path
from .remote import HubCopy, check_copy, copy_on_disk, hub_commit, listed_by_hub


class TableSource(Source):
    """Files of any other format that `datasets` reads, as one memory-mapped table."""

    def __init__(
        self,
        config: DataConfig,
        file_sizes: dict[str, int],
        table: datasets.Dataset,
        revision: str | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        check_text_column(config, table.features.arrow_schema, config.source)
        self._table = table.select_columns([config.text_column])
        text_bytes = self._table.data.nbytes
        cut, self.shards_per_window = cut_into_shards([RowGroup("table", 0, table.num_rows, text_bytes)])
        # any row is read as fast as the next one, so that each shard is a group of its own
        shards = [replace(shard, group=shard.index) for shard in cut]
        super().__init__(config, file_sizes, shards, revision, versions)

    def _rows(self, shard: Shard) -> Sequence[Document | BadRow | None]:
        return self._table[shard.first_row : shard.first_row + shard.rows][self.config.text_column]


def open_dataset_files(config: DataConfig, key: str, splits: tuple[str, ...]) -> Source:
    """The documents of a local folder, file or glob, or of a data set on the hub.

    Args:
        config: What the source is and which of it is asked for.
        key: The option that names the source, for messages.
        splits: The first of these that there is gets read.

    Raises:
        UserError: there is no such file, subset, split or text column, or there are no documents.
        ConnectionError: the hub cannot be reached or does not give the data set.
    """
    try:
        return _open(config, key, splits)
    except Unreadable as error:
        return _open(config, key, splits, copy_on_disk(config, error), error)


def _open(
    config: DataConfig,
    key: str,
    splits: tuple[str, ...],
    copy: HubCopy | None = None,
    error: Unreadable | None = None,
) -> Source:
    """The source, or the `copy` of it that is read because of `error`."""
    builder, split, revision = _resolve(config, key, splits, copy)
    if copy is not None and error is not None:
        check_copy(copy, config, builder.config.data_files[split], error)
    source = _source_of(builder, split, revision, config, key)
    source.notes += [copy.note(key)] if copy is not None else _notes(builder, config, key)
    return source


def _source_of(
    builder: datasets.DatasetBuilder, split: str, revision: str | None, config: DataConfig, key: str
) -> Source:
    paths = list(builder.config.data_files[split])
    storage_options = builder.storage_options or {}
    if isinstance(builder, Parquet):
        return ParquetSource(config, paths, storage_options, revision)
    if isinstance(builder, Json):
        return JsonlSource(config, paths, storage_options, revision)
    sizes: dict[str, int] = {}
    versions: dict[str, str] = {}
    for path in paths:
        filesystem, location = filesystem_of(path, storage_options)
        info = filesystem.info(location)
        sizes[path] = info["size"]
        if (version := remote_version(path, info)) is not None:
            versions[path] = version
    # where `datasets` keeps the table: its own name for it follows only a file's size and date
    content = json.dumps(versions or content_hashes(paths))
    output_dir = os.path.join(builder.cache_dir, hashlib.sha256(content.encode()).hexdigest()[:16])
    try:
        builder.download_and_prepare(output_dir)
    except (DatasetGenerationError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{key}: {config.source} cannot be read as documents ({reason})") from error
    return TableSource(config, sizes, builder.as_dataset(split=split), revision, versions)


def _notes(builder: datasets.DatasetBuilder, config: DataConfig, key: str) -> Iterator[str]:
    """What a user may not expect of the way in which `datasets` reads files."""
    if isinstance(builder, Text):
        yield f"{key}: each line of a text file is a document: longer ones need JSON lines."
    folder = Path(config.source).expanduser()
    if not folder.is_dir() or (folder / "README.md").exists():
        return  # a README.md may say what is read
    read = {os.path.realpath(path) for paths in builder.config.data_files.values() for path in paths}
    unread = [
        path.name
        for path in sorted(folder.rglob("*"))
        if not {".parquet", ".jsonl", ".ndjson"}.isdisjoint(path.suffixes)
        and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        and os.path.realpath(path) not in read
    ]
    if unread:
        yield (
            f"{key}: not every file of {config.source} is read ({len(unread)} are not, such as {unread[0]}): "
            "a folder is read in one format, and where file names have a split in them, only those files."
        )


def _resolve(
    config: DataConfig, key: str, splits: tuple[str, ...], copy: HubCopy | None
) -> tuple[datasets.DatasetBuilder, str, str | None]:
    """What `datasets` makes of a source, the first of `splits` that it has, and the hub's commit."""
    source = config.source
    local = Path(source).expanduser()
    revision = None
    arguments: dict[str, Any]
    options: tuple[str, ...] = ()
    if copy is not None:
        arguments, revision = {"path": str(copy.folder), "name": config.subset}, copy.commit
        options = ("subset", "revision")
    elif local.is_dir():
        arguments = {"path": str(local), "name": config.subset}
        options = ("subset",)
    elif local.is_file():
        arguments = {
            "path": str(local.absolute().parent),
            "data_files": {splits[0]: [glob.escape(str(local.absolute()))]},
        }
    elif glob.has_magic(source):
        # the folder only names the builder: the pattern is absolute
        arguments = {"path": str(_existing_parent(local)), "data_files": {splits[0]: [str(local.absolute())]}}
    else:
        revision = hub_commit(config, key)
        arguments = {"path": source, "name": config.subset, "revision": revision}
        options = ("subset", "revision")
    refuse_options(config, key, options)
    try:
        if revision is None or copy is not None:
            builder = datasets.load_dataset_builder(**arguments)
        else:
            builder = listed_by_hub(lambda: datasets.load_dataset_builder(**arguments), config, key)
    except FileNotFoundError as error:
        found = "holds no" if local.is_dir() else "matches no"
        kind = UserError if revision is None else ConnectionError  # what the hub answers is not ours
        raise kind(f"{key}: {source} {found} .parquet, .jsonl or .bin file{nearest_path(local)}") from error
    except ValueError as error:
        raise UserError(_subset_problem(config, error)) from error
    available = [str(split) for split in builder.config.data_files or ()]
    return builder, split_of(key, source, splits, available), revision


def _subset_problem(config: DataConfig, error: ValueError) -> str:
    """One sentence for a subset that `datasets` does not find; any other complaint as it stands."""
    message = " ".join(str(error).split())
    listed = re.search(r"\[(.*?)\]", message)
    if "onfig" not in message or listed is None:
        return f"data.source: {config.source} cannot be opened ({message})"
    names = re.findall(r"'([^']*)'", listed[1])
    given = "not given" if config.subset is None else repr(config.subset)
    hint = did_you_mean(config.subset or "", names)
    return f"data.subset is {given}, but {config.source} has {', '.join(names)}{hint}"


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.is_dir())
