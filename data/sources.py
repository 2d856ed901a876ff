"""Where documents come from: the embedded sample, the Hugging Face hub, or local files, behind one interface.

`datasets` says which files a source consists of. Parquet is then read a row group at a time with pyarrow,
each footer parsed once: a partly read `datasets` stream can hang the process when it exits. Other formats are
turned into a memory-mapped table by `datasets` and cut into shards of `ROWS_PER_SHARD` rows.
"""

import difflib
import glob
import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from data.config import DataConfig
from data.sample import SAMPLE_DIR, build_sample

ROWS_PER_SHARD = 1_000
HUB_TIMEOUT_SECONDS = 10
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LOCAL_CHOICES = "`sample`, or a file, folder or glob of .parquet or .jsonl files"


@dataclass(frozen=True)
class Shard:
    """A run of documents that is read at once: part `part` of the file `path`, number `index` of all."""

    index: int
    path: str
    part: int
    rows: int


class Source(ABC):
    """Documents in shards.

    Attributes:
        name: What `data.source` said.
        shards: All shards in file order.
        fingerprint: A hash of the files' names and sizes, their shards and the text column. It stays the same
            when the files move to another folder.
    """

    def __init__(
        self, name: str, text_column: str, file_sizes: dict[str, int], shards: Sequence[Shard]
    ) -> None:
        self.name = name
        self.text_column = text_column
        self.file_sizes = file_sizes
        self.shards = tuple(shards)
        content = [text_column, [[os.path.basename(path), size] for path, size in file_sizes.items()]]
        content.append([[os.path.basename(shard.path), shard.part, shard.rows] for shard in self.shards])
        self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        if not any(shard.rows for shard in self.shards):
            raise ValueError(f"data.source: {name} holds no documents.")

    def read(self, shard: Shard) -> list[str]:
        """The texts of a shard's documents in file order, without those that are null or empty."""
        return [text for text in self._column(shard) if text]

    @abstractmethod
    def _column(self, shard: Shard) -> list[str | None]:
        """The text column of a shard's rows."""


class ParquetSource(Source):
    """One shard a row group. Footers are read when the source is opened and kept."""

    def __init__(
        self, name: str, text_column: str, paths: Sequence[str], storage_options: dict[str, Any]
    ) -> None:
        self._storage_options = storage_options
        with ThreadPoolExecutor(16) as pool:  # on the hub each footer is a request or two
            footers = list(pool.map(self._footer, paths))
        self._footers = {path: footer for path, (footer, _) in zip(paths, footers, strict=True)}
        shards: list[Shard] = []
        for path, footer in self._footers.items():
            _check_text_column(name, text_column, footer.schema.to_arrow_schema())
            for group in range(footer.num_row_groups):
                shards.append(Shard(len(shards), path, group, footer.row_group(group).num_rows))
        sizes = {path: size for path, (_, size) in zip(paths, footers, strict=True)}
        super().__init__(name, text_column, sizes, shards)

    def _footer(self, path: str) -> tuple[pq.FileMetaData, int]:
        filesystem, location = fsspec.core.url_to_fs(path, **self._storage_options)
        try:
            with filesystem.open(location, "rb") as file:
                return pq.read_metadata(file), filesystem.size(location)
        except pa.ArrowInvalid as error:
            raise ValueError(f"data.source: {path} is not a readable parquet file ({error}).") from error

    def _column(self, shard: Shard) -> list[str | None]:
        filesystem, location = fsspec.core.url_to_fs(shard.path, **self._storage_options)
        with filesystem.open(location, "rb") as file:
            parquet = pq.ParquetFile(file, metadata=self._footers[shard.path])
            table = parquet.read_row_group(shard.part, columns=[self.text_column], use_threads=False)
        return table.column(self.text_column).to_pylist()


class TableSource(Source):
    """Files that are not parquet, as one memory-mapped table; a shard is `ROWS_PER_SHARD` rows of it."""

    def __init__(
        self, name: str, text_column: str, file_sizes: dict[str, int], table: datasets.Dataset
    ) -> None:
        _check_text_column(name, text_column, table.features.arrow_schema)
        self._table = table.select_columns([text_column])
        starts = range(0, table.num_rows, ROWS_PER_SHARD)
        shards = [
            Shard(index, "table", index, min(ROWS_PER_SHARD, table.num_rows - start))
            for index, start in enumerate(starts)
        ]
        super().__init__(name, text_column, file_sizes, shards)

    def _column(self, shard: Shard) -> list[str | None]:
        start = shard.part * ROWS_PER_SHARD
        return self._table[start : start + shard.rows][self.text_column]


def open_source(config: DataConfig) -> Source:
    """The documents of `data.source`; `sample` is built when it is not there yet.

    Raises:
        FileNotFoundError: no such file, folder or data set, or the hub cannot be reached.
        ValueError: the source has no such subset, split or text column, or holds no documents.
    """
    return _open(config, "data.source", (config.split,))


def open_validation_source(config: DataConfig) -> Source:
    """The held-out documents of `data.validation_source`: of a folder's splits `validation`, else `test`,
    else `train`.

    Raises:
        FileNotFoundError, ValueError: as `open_source`.
    """
    assert config.validation_source is not None
    held_out = replace(config, source=config.validation_source, subset=None, revision=None)
    return _open(held_out, "data.validation_source", ("validation", "test", "train"))


def _open(config: DataConfig, key: str, splits: tuple[str, ...]) -> Source:
    builder, split = _resolve(config, key, splits)
    paths = list(builder.config.data_files[split])
    storage_options = builder.storage_options or {}
    if isinstance(builder, Parquet):
        return ParquetSource(config.source, config.text_column, paths, storage_options)
    try:
        builder.download_and_prepare()
    except (DatasetGenerationError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{key}: {config.source} cannot be read as documents ({reason}).") from error
    sizes = {}
    for path in paths:
        filesystem, location = fsspec.core.url_to_fs(path, **storage_options)
        sizes[path] = filesystem.size(location)
    return TableSource(config.source, config.text_column, sizes, builder.as_dataset(split=split))


def _resolve(config: DataConfig, key: str, splits: tuple[str, ...]) -> tuple[datasets.DatasetBuilder, str]:
    """What `datasets` makes of a source, and the first of `splits` that it has."""
    source = config.source
    local = Path(source).expanduser()
    arguments: dict[str, Any]
    if source == "sample":
        folder = build_sample(SAMPLE_DIR, progress=True)
        files = {split: str(folder / f"{split}.parquet") for split in ("train", "validation")}
        arguments = {"path": str(folder), "data_files": files}
    elif local.is_dir():
        arguments = {"path": str(local), "name": config.subset}
    elif local.is_file():
        arguments = {
            "path": str(local.absolute().parent),
            "data_files": {splits[0]: [glob.escape(str(local.absolute()))]},
        }
    elif glob.has_magic(source):
        # the folder only names the builder: the pattern is absolute
        arguments = {"path": str(_existing_parent(local)), "data_files": {splits[0]: [str(local.absolute())]}}
    elif _HUB_ID.fullmatch(source) and local.suffix not in (".parquet", ".jsonl", ".json", ".gz", ".zst"):
        _check_hub(config, key)
        arguments = {"path": source, "name": config.subset, "revision": config.revision}
    else:
        raise FileNotFoundError(
            f"{key}: {source} does not exist{_nearest_path(local)}; it may be {_LOCAL_CHOICES}."
        )
    for option in ("subset", "revision"):
        if getattr(config, option) is not None and {"subset": "name"}.get(option, option) not in arguments:
            raise ValueError(
                f"data.{option} is {getattr(config, option)!r}, but {key} {source} has no {option}s."
            )
    try:
        builder = datasets.load_dataset_builder(**arguments)
    except FileNotFoundError as error:
        found = "holds no" if local.is_dir() else "matches no"
        raise FileNotFoundError(
            f"{key}: {source} {found} .parquet or .jsonl file{_nearest_path(local)}."
        ) from error
    except ValueError as error:
        raise ValueError(_subset_problem(config, error)) from error
    available = [str(split) for split in builder.config.data_files or ()]
    for split in splits:
        if split in available:
            return builder, split
    if key == "data.source":
        raise ValueError(f"data.split is {splits[0]!r}, but {source} has only {', '.join(available)}.")
    raise ValueError(f"{key}: {source} has only {', '.join(available)}, none of {', '.join(splits)}.")


def _check_hub(config: DataConfig, key: str) -> None:
    """Asks the hub once: `datasets` would spend half a minute on retries when there is no network."""
    where = config.source if config.revision is None else f"{config.source} at revision {config.revision}"
    try:
        HfApi().dataset_info(config.source, revision=config.revision, timeout=HUB_TIMEOUT_SECONDS)
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise FileNotFoundError(
            f"{key}: the Hugging Face hub does not give {where} (HTTP {status}): "
            "it does not exist, or it needs a token that may read it."
        ) from error
    except Exception as error:  # the network's exceptions change with the HTTP library of huggingface_hub
        raise FileNotFoundError(
            f"{key}: {where} is no file or folder here, and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}); without a network use {_LOCAL_CHOICES}."
        ) from error


def _subset_problem(config: DataConfig, error: ValueError) -> str:
    """One sentence for a subset that `datasets` does not find; any other complaint as it stands."""
    message = " ".join(str(error).split())
    listed = re.search(r"\[(.*?)\]", message)
    if "onfig" not in message or listed is None:
        return f"data.source: {config.source} cannot be opened ({message})."
    names = re.findall(r"'([^']*)'", listed[1])
    given = "not given" if config.subset is None else repr(config.subset)
    hint = _nearest(config.subset or "", names)
    return f"data.subset is {given}, but {config.source} has {', '.join(names)}{hint}."


def _check_text_column(name: str, text_column: str, schema: pa.Schema) -> None:
    if text_column not in schema.names:
        raise ValueError(
            f"data.text_column is {text_column!r}, but {name} has the columns {', '.join(schema.names)}"
            f"{_nearest(text_column, schema.names)}."
        )
    kind = schema.field(text_column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise ValueError(
            f"data.text_column is {text_column!r}, but that column of {name} holds {kind}, not text."
        )


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _nearest_path(path: Path) -> str:
    """A hint for a path that is not there: a neighbour with a similar name, or the folder that is missing."""
    if not path.parent.is_dir():
        return "" if glob.has_magic(str(path.parent)) else f" (there is no folder {path.parent})"
    if path.exists() or glob.has_magic(path.name):
        return ""
    return _nearest(path.name, ["sample", *(neighbour.name for neighbour in path.parent.iterdir())])


def _nearest(given: str, names: Sequence[str]) -> str:
    matches = difflib.get_close_matches(given, names, n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""
