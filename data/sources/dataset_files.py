"""What `datasets` finds, on the hub or by the card of a folder, and the rare formats that it reads."""

import glob
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import yaml
from datasets.packaged_modules import _EXTENSION_TO_MODULE
from datasets.packaged_modules.csv.csv import Csv
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
from .local import Found, left_out_note, supplied_split
from .network import Unreadable, filesystem_of, with_retries
from .parquet import ParquetSource, check_text_column, to_rows
from .places import is_left_out, is_remote
from .remote import HubCopy, check_copy, copy_on_disk, hub_commit, keep_hub_files, listed_by_hub


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
        cut, self.shards_per_window = cut_into_shards(
            [RowGroup("table", 0, table.num_rows, text_bytes)], table.num_rows
        )
        # any row is read as fast as the next one, so that each shard is a group of its own
        shards = [replace(shard, group=shard.index) for shard in cut]
        super().__init__(config, file_sizes, shards, revision, versions)

    def _rows(self, shard: Shard) -> Sequence[Document | BadRow | None]:
        rows = self._table.with_format("arrow")[shard.first_row : shard.first_row + shard.rows]
        return to_rows(rows.column(self.config.text_column))


def open_hub(config: DataConfig, key: str, splits: tuple[str, ...]) -> Source:
    """The documents of a data set on the hub.

    Args:
        config: What the source is and which of it is asked for.
        key: The option that names the source, for messages.
        splits: The first of these that there is gets read.

    Raises:
        UserError: there is no such subset, split or text column, or there are no documents.
        ConnectionError: the hub cannot be reached or does not give the data set.
    """
    refuse_options(config, key, ("subset", "revision"))
    try:
        return _on_hub(config, key, splits)
    except Unreadable as error:
        copy = copy_on_disk(config, error)
        source = _of_copy(copy, config, key, splits, error)
        source.notes.append(copy.note(key))
        return source


def _on_hub(config: DataConfig, key: str, splits: tuple[str, ...]) -> Source:
    revision = hub_commit(config, key)
    arguments = {"path": config.source, "name": config.subset, "revision": revision}
    builder = listed_by_hub(lambda: _builder(config, key, ConnectionError, **arguments), config, key)
    return _of_builder(builder, config, key, splits, revision)


def _of_copy(
    copy: HubCopy, config: DataConfig, key: str, splits: tuple[str, ...], error: Unreadable
) -> Source:
    """What the hub's cache on this disk has of a data set, which is read because of `error`."""
    with _plain(copy.folder) as place:
        builder = _builder(config, key, lambda _: error, path=str(place), name=config.subset)
        split = split_of(key, config.source, splits, _splits_of(builder))
        check_copy(copy, config, [_real(path) for path in builder.config.data_files[split]], error)
        return _of_builder(builder, config, key, splits, copy.commit)


def open_with_card(config: DataConfig, key: str, splits: tuple[str, ...], folder: Path) -> Source:
    """The documents of a folder whose README.md says which files are what, as a data set of the hub has it.

    Raises UserError as `open_hub`.
    """
    refuse_options(config, key, ("subset",))
    with _plain(folder.absolute()) as place:
        builder = _builder(config, key, UserError, path=str(place), name=config.subset)
        return _of_builder(builder, config, key, splits)


def open_rare_files(config: DataConfig, key: str, split: str, found: Found) -> Source:
    """The documents of one split's files in a format that `datasets` reads. Raises UserError."""
    assert found.format is not None
    paths = found.splits[split]
    reader, options = _EXTENSION_TO_MODULE.get(found.format, (os.path.dirname(paths[0]), {}))
    escaped = [glob.escape(path) for path in paths]
    builder = _builder(config, key, UserError, path=reader, data_files={split: escaped}, **options)
    return _source_of(builder, split, paths, None, config, key)


def _builder(
    config: DataConfig, key: str, not_found: Callable[[str], Exception], **arguments: Any
) -> datasets.DatasetBuilder:
    try:
        return datasets.load_dataset_builder(**arguments)
    except FileNotFoundError as error:
        raise not_found(f"{key}: {config.source} holds no .parquet, .jsonl or .bin file") from error
    except ValueError as error:
        raise UserError(_subset_problem(config, key, error)) from error
    except (zipfile.BadZipFile, yaml.YAMLError) as error:
        raise _unreadable(config, key, error) from error


def _of_builder(
    builder: datasets.DatasetBuilder,
    config: DataConfig,
    key: str,
    splits: tuple[str, ...],
    revision: str | None = None,
) -> Source:
    available = _splits_of(builder)
    split = split_of(key, config.source, splits, available)
    named = [_real(path) for path in builder.config.data_files[split]]
    paths = [path for path in named if not is_left_out(os.path.basename(path))]
    if not paths:
        raise UserError(f"{key}: {config.source} has only hidden or unfinished files, such as {named[0]}")
    source = _source_of(builder, split, paths, revision, config, key)
    source.notes += left_out_note(config.source, key, sorted({*named} - {*paths}))
    source.validation_split = supplied_split(available, split)
    return source


def _source_of(
    builder: datasets.DatasetBuilder,
    split: str,
    paths: Sequence[str],
    revision: str | None,
    config: DataConfig,
    key: str,
) -> Source:
    storage_options = builder.storage_options or {}
    source: Source
    if isinstance(builder, Parquet):
        source = ParquetSource(config, paths, storage_options, revision)
    elif isinstance(builder, Json):
        source = JsonlSource(config, paths, storage_options, revision)
    else:
        source = _table_of(builder, split, revision, paths, config, key)
    if isinstance(builder, Text):
        source.notes.append(f"{key}: each line of a text file is a document: longer ones need JSON lines.")
    return source


def _table_of(
    builder: datasets.DatasetBuilder,
    split: str,
    revision: str | None,
    paths: Sequence[str],
    config: DataConfig,
    key: str,
) -> TableSource:
    sizes: dict[str, int] = {}
    versions: dict[str, str] = {}
    for path in paths:
        filesystem, location = filesystem_of(path, builder.storage_options or {})
        info = with_retries(partial(filesystem.info, location), path, config.timeout_s, opening=True)
        sizes[path] = info["size"]
        if (version := remote_version(path, info)) is not None:
            versions[path] = version
    # where `datasets` keeps the table: its own name for it follows only a file's size and date
    content = json.dumps(versions or content_hashes(paths))
    output_dir = os.path.join(builder.cache_dir, hashlib.sha256(content.encode()).hexdigest()[:16])
    keep_hub_files([path for split in builder.config.data_files.values() for path in split], config.timeout_s)
    try:
        builder.download_and_prepare(output_dir)
        table = builder.as_dataset(split=split)
    except Exception as error:  # each of its readers raises what it likes
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and is_remote(paths[0])):
            raise
        raise _unreadable(config, key, error) from error
    if isinstance(builder, Csv) and f"{config.text_column}.1" in table.column_names:  # pandas' name for it
        raise UserError(
            f"data.text_column is {config.text_column!r}, but {config.source} has two columns of that name: "
            "give each a name of its own"
        )
    return TableSource(config, sizes, table, revision, versions)


def _unreadable(config: DataConfig, key: str, error: Exception) -> UserError:
    cause = error.__cause__ or error
    reason = " ".join(str(cause).split()).removesuffix(".") or type(cause).__name__
    return UserError(f"{key}: {config.source} cannot be read as documents ({reason})")


def _splits_of(builder: datasets.DatasetBuilder) -> list[str]:
    return [str(split) for split in builder.config.data_files or ()]


@contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """The folder, or one of links to its files while its own path has characters of a pattern, for which
    `datasets` would take it."""
    if not glob.has_magic(str(folder.resolve())):
        yield folder
        return
    with TemporaryDirectory(prefix="normlab-links-") as links:
        for parent, _, files in os.walk(folder):
            below = Path(links, os.path.relpath(parent, folder))
            below.mkdir(exist_ok=True)
            for name in files:
                (below / name).symlink_to(Path(parent, name))
        yield Path(links)


def _real(path: str) -> str:
    """The file that a link of `_plain` stands for; any other path as it is."""
    return os.readlink(path) if "/normlab-links-" in path else path


def _subset_problem(config: DataConfig, key: str, error: ValueError) -> str:
    """One sentence for a subset that `datasets` does not find; any other complaint as it stands."""
    message = " ".join(str(error).split())
    listed = re.search(r"\[(.*?)\]", message)
    if "onfig" not in message or listed is None:
        return f"{key}: {config.source} cannot be opened ({message})"
    names = re.findall(r"'([^']*)'", listed[1])
    given = "not given" if config.subset is None else repr(config.subset)
    hint = did_you_mean(config.subset or "", names)
    return f"data.subset is {given}, but {config.source} has {', '.join(names)}{hint}"
