"""What `data.source` names: the embedded sample, the Hugging Face hub, files here or at a URL, token shards.

`datasets` says which files a source consists of, and reads the formats that have no reader of their own here.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import DataConfig
from ..sample.build import SAMPLE_DIR, build_sample
from ..tokenizer import Tokenizer
from .documents import ROWS_PER_SHARD, BadRow, Document, Shard, Source
from .jsonl import JsonlSource
from .names import nearest, nearest_path
from .network import filesystem_of, is_remote, with_retries
from .parquet import ParquetSource, check_text_column
from .token_shards import is_token_source, open_token_source

if TYPE_CHECKING:  # imported where it is needed: it takes a second, and neither the sample nor tokens need it
    import datasets

HUB_TIMEOUT_SECONDS = 10
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
_FILE_FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".ndjson": "json"}
_LOCAL_CHOICES = "`sample`, or a file, folder, glob or URL of .parquet, .jsonl or .bin files"


class TableSource(Source):
    """Files of any other format that `datasets` reads, as one memory-mapped table."""

    def __init__(
        self,
        config: DataConfig,
        file_sizes: dict[str, int],
        table: "datasets.Dataset",
        revision: str | None = None,
    ) -> None:
        check_text_column(config, table.features.arrow_schema, config.source)
        self._table = table.select_columns([config.text_column])
        starts = range(0, table.num_rows, ROWS_PER_SHARD)
        shards = [
            Shard(index, "table", index, start, min(ROWS_PER_SHARD, table.num_rows - start))
            for index, start in enumerate(starts)
        ]
        super().__init__(config, file_sizes, shards, revision)

    def _rows(self, shard: Shard) -> Sequence[Document | BadRow | None]:
        return self._table[shard.first_row : shard.first_row + shard.rows][self.config.text_column]


def open_source(config: DataConfig, tokenizer: Tokenizer) -> Source:
    """The documents of `data.source`; `sample` is built when it is not there yet.

    Raises:
        FileNotFoundError: no such file, folder or data set, or the hub cannot be reached.
        ValueError: the source has no such subset, split or text column, or holds no documents.
    """
    return _open(config, tokenizer, "data.source", (config.split,))


def open_validation_source(config: DataConfig, tokenizer: Tokenizer) -> Source:
    """The held-out documents of `data.validation_source`: of a folder's splits `validation`, else `test`,
    else `train`.

    Raises:
        FileNotFoundError, ValueError: as `open_source`.
    """
    assert config.validation_source is not None
    held_out = replace(
        config, source=config.validation_source, subset=None, revision=None, split="validation"
    )
    return _open(held_out, tokenizer, "data.validation_source", ("validation", "test", "train"))


def _open(config: DataConfig, tokenizer: Tokenizer, key: str, splits: tuple[str, ...]) -> Source:
    if is_token_source(config.source):
        _refuse_options(config, key, {})
        return open_token_source(config, tokenizer)
    if config.source == "sample":
        _refuse_options(config, key, {})
        return _open_sample(config, key, splits)
    if is_remote(config.source):
        _refuse_options(config, key, {})
        reader = JsonlSource if _format(key, config.source) == "json" else ParquetSource
        return reader(config, _matching(key, config.source))
    builder, split, revision = _resolve(config, key, splits)
    source = _source_of(builder, split, revision, config, key)
    source.notes += _notes(builder, config, key)
    return source


def _open_sample(config: DataConfig, key: str, splits: tuple[str, ...]) -> Source:
    folder = build_sample(SAMPLE_DIR, progress=True).absolute()
    split = _first_of(splits, ["train", "validation"], key, "sample")
    return ParquetSource(config, [str(folder / f"{split}.parquet")])


def _source_of(
    builder: "datasets.DatasetBuilder", split: str, revision: str | None, config: DataConfig, key: str
) -> Source:
    from datasets.exceptions import DatasetGenerationError
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet

    paths = list(builder.config.data_files[split])
    storage_options = builder.storage_options or {}
    if isinstance(builder, Parquet):
        return ParquetSource(config, paths, storage_options, revision)
    if isinstance(builder, Json):
        return JsonlSource(config, paths, storage_options, revision)
    try:
        builder.download_and_prepare()
    except (DatasetGenerationError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{key}: {config.source} cannot be read as documents ({reason}).") from error
    sizes = {}
    for path in paths:
        filesystem, location = filesystem_of(path, storage_options)
        sizes[path] = filesystem.size(location)
    return TableSource(config, sizes, builder.as_dataset(split=split), revision)


def _notes(builder: "datasets.DatasetBuilder", config: DataConfig, key: str) -> Iterator[str]:
    """What a user may not expect of the way in which `datasets` reads files."""
    from datasets.packaged_modules.text.text import Text

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
    config: DataConfig, key: str, splits: tuple[str, ...]
) -> "tuple[datasets.DatasetBuilder, str, str | None]":
    """What `datasets` makes of a source, the first of `splits` that it has, and the hub's commit."""
    import datasets

    source = config.source
    local = Path(source).expanduser()
    revision = None
    arguments: dict[str, Any]
    if local.is_dir():
        arguments = {"path": str(local), "name": config.subset}
    elif local.is_file():
        arguments = {
            "path": str(local.absolute().parent),
            "data_files": {splits[0]: [glob.escape(str(local.absolute()))]},
        }
    elif glob.has_magic(source):
        # the folder only names the builder: the pattern is absolute
        arguments = {"path": str(_existing_parent(local)), "data_files": {splits[0]: [str(local.absolute())]}}
    elif _HUB_ID.fullmatch(source) and local.suffix not in (*_FILE_FORMATS, *_COMPRESSED, ".bin"):
        revision = _hub_commit(config, key)
        arguments = {"path": source, "name": config.subset, "revision": revision}
    else:
        raise FileNotFoundError(
            f"{key}: {source} does not exist{nearest_path(local)}; it may be {_LOCAL_CHOICES}."
        )
    _refuse_options(config, key, arguments)
    try:
        builder = datasets.load_dataset_builder(**arguments)
    except FileNotFoundError as error:
        found = "holds no" if local.is_dir() else "matches no"
        raise FileNotFoundError(
            f"{key}: {source} {found} .parquet, .jsonl or .bin file{nearest_path(local)}."
        ) from error
    except ValueError as error:
        raise ValueError(_subset_problem(config, error)) from error
    available = [str(split) for split in builder.config.data_files or ()]
    return builder, _first_of(splits, available, key, source), revision


def _first_of(splits: tuple[str, ...], available: list[str], key: str, source: str) -> str:
    """The first of `splits` that a source has. Raises ValueError where it has none of them."""
    for split in splits:
        if split in available:
            return split
    if key == "data.source":
        raise ValueError(f"data.split is {splits[0]!r}, but {source} has only {', '.join(available)}.")
    raise ValueError(f"{key}: {source} has only {', '.join(available)}, none of {', '.join(splits)}.")


def _refuse_options(config: DataConfig, key: str, arguments: dict[str, Any]) -> None:
    for option, argument in (("subset", "name"), ("revision", "revision")):
        if getattr(config, option) is not None and argument not in arguments:
            raise ValueError(
                f"data.{option} is {getattr(config, option)!r}, but {key} {config.source} has no {option}s."
            )


def _matching(key: str, url: str) -> list[str]:
    """The URLs that a pattern matches, where the file system can list its files; any other is itself."""
    filesystem, location = filesystem_of(url, {})
    if not glob.has_magic(location) or url.startswith(("http://", "https://")):
        return [url]
    found = with_retries(lambda: filesystem.glob(location), url, opening=True)
    if not found:
        raise FileNotFoundError(f"{key}: {url} matches no file.")
    return [filesystem.unstrip_protocol(path) for path in sorted(found)]


def _format(key: str, url: str) -> str:
    """The reader of `datasets` for a URL."""
    name = url.partition("?")[0]
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    for suffix, reader in _FILE_FORMATS.items():
        if name.endswith(suffix):
            return reader
    raise ValueError(
        f"{key} is {url}: a URL must end in {', '.join(_FILE_FORMATS)}, or one of them compressed."
    )


def _hub_commit(config: DataConfig, key: str) -> str | None:
    """The commit of a data set on the hub, which the run then stays with.

    Asked once: `datasets` would spend half a minute on retries when there is no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    where = config.source if config.revision is None else f"{config.source} at revision {config.revision}"
    try:
        return HfApi().dataset_info(config.source, revision=config.revision, timeout=HUB_TIMEOUT_SECONDS).sha
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
    hint = nearest(config.subset or "", names)
    return f"data.subset is {given}, but {config.source} has {', '.join(names)}{hint}."


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.is_dir())
