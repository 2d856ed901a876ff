"""What `data.source` names: the embedded sample, token shards, files here or at a URL, the Hugging Face hub.

Whatever can be refused is refused before pyarrow and `datasets` are imported.
"""

import glob
from dataclasses import replace
from pathlib import Path

from model.errors import UserError

from ..config import DataConfig
from ..tokenizer import Tokenizer
from .choices import LOCAL_CHOICES, refuse_options, split_of
from .documents import Source
from .named_files import hub_files, open_named_files, refuse_names
from .places import FILE_FORMATS, file_format, is_hub_id, is_remote, nearest_path
from .token_shards import is_token_source, open_token_source

_SAMPLE_SPLITS = ("train", "validation")


def open_source(config: DataConfig, tokenizer: Tokenizer) -> Source:
    """The documents of `data.source`; `sample` is built when it is not there yet.

    Raises:
        UserError: no such file, folder or data set, or it has no such subset, split or text column, or holds
            no documents.
        OSError: the hub or a server cannot be reached, or does not give it.
    """
    return _open(config, tokenizer, "data.source", (config.split,))


def open_validation_source(config: DataConfig, tokenizer: Tokenizer) -> Source:
    """The held-out documents of `data.validation_source`: of a folder's splits `validation`, else `test`,
    else `train`.

    Raises:
        UserError, OSError: as `open_source`.
    """
    return _open(_held_out(config), tokenizer, "data.validation_source", ("validation", "test", "train"))


def refuse_missing(config: DataConfig) -> None:
    """Refuse a `data.source` or `data.validation_source` that is nothing here and cannot be elsewhere.

    Opening one refuses it too, but only after a tokenizer was loaded.

    Raises:
        UserError: there is no such file or folder, or `data.files` cannot be a choice of its files.
    """
    _refuse_missing("data.source", config)
    if config.validation_source is not None:
        _refuse_missing("data.validation_source", _held_out(config))


def _held_out(config: DataConfig) -> DataConfig:
    assert config.validation_source is not None
    source = config.validation_source
    revision = config.validation_revision
    return replace(config, source=source, subset=None, revision=revision, files=None, split="validation")


def _open(config: DataConfig, tokenizer: Tokenizer, key: str, splits: tuple[str, ...]) -> Source:
    _refuse_missing(key, config)
    config = hub_files(config, key)
    if config.files is not None:
        return open_named_files(config, tokenizer, key)
    if is_token_source(config.source):
        refuse_options(config, key)
        return open_token_source(config, tokenizer)
    if config.source == "sample":
        refuse_options(config, key)
        return _open_sample(config, split_of(key, "sample", splits, _SAMPLE_SPLITS))
    if is_remote(config.source):
        refuse_options(config, key)
        return _open_url(config, key)
    from .dataset_files import open_dataset_files

    return open_dataset_files(config, key, splits)


def _refuse_missing(key: str, config: DataConfig) -> None:
    source = config.source
    path = Path(source).expanduser()
    is_here = source == "sample" or path.is_dir() or path.is_file() or glob.has_magic(source)
    if not (is_here or is_token_source(source) or is_remote(source) or is_hub_id(source)):
        raise UserError(f"{key}: {source} does not exist{nearest_path(path)}; it may be {LOCAL_CHOICES}")
    refuse_names(hub_files(config, key), key)


def _open_sample(config: DataConfig, split: str) -> Source:
    from ..sample import SAMPLE_DIR, build_sample
    from .parquet import ParquetSource

    folder = build_sample(SAMPLE_DIR, progress=True)
    return ParquetSource(config, [str(folder.absolute() / f"{split}.parquet")])


def _open_url(config: DataConfig, key: str) -> Source:
    kind = file_format(config.source)
    if kind is None:
        raise UserError(
            f"{key} is {config.source}: a URL must end in {', '.join(FILE_FORMATS)}, or one of them "
            "compressed"
        )
    if kind == "json":
        from .jsonl import JsonlSource

        return JsonlSource(config, _matching(key, config))
    from .parquet import ParquetSource

    return ParquetSource(config, _matching(key, config))


def _matching(key: str, config: DataConfig) -> list[str]:
    """The URLs that a pattern matches, where the file system can list its files; any other is itself."""
    from .network import filesystem_of, with_retries

    url = config.source
    filesystem, location = filesystem_of(url, {})
    if not glob.has_magic(location) or url.startswith(("http://", "https://")):
        return [url]
    found = with_retries(lambda: filesystem.glob(location), url, config.timeout_s, opening=True)
    if not found:
        raise FileNotFoundError(f"{key}: {url} matches no file")  # as the server says
    return [filesystem.unstrip_protocol(path) for path in sorted(found)]
