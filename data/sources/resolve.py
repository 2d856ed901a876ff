"""What `data.source` names: the embedded sample, token shards, files here or at a URL, the Hugging Face hub.

Whatever can be refused is refused before pyarrow and `datasets` are imported.
"""

import glob
import re
from dataclasses import replace
from pathlib import Path

import yaml

from model.errors import UserError

from ..config import DataConfig
from ..tokenizer import Tokenizer
from .choices import LOCAL_CHOICES, refuse_options, split_of
from .documents import Source
from .local import divided, find_files, left_out_note, supplied_split
from .named_files import hub_files, open_named_files, refuse_names
from .places import FILE_FORMATS, file_format, is_hub_id, is_left_out, is_remote, local_path, nearest_path
from .token_shards import manifest_of, open_token_folder

_CARD = re.compile(r"\A---\s*\n(.*?)^---", re.DOTALL | re.MULTILINE)
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
    held_out = _held_out(config)
    if config.validation_text_column is None and held_out.source == "sample":
        held_out = replace(held_out, text_column=DataConfig.text_column)
    try:
        return _open(held_out, tokenizer, "data.validation_source", ("validation", "test", "train"))
    except UserError as error:  # a source speaks of itself as data.source
        sentence = str(error).replace("data.source:", "data.validation_source:")
        sentence = sentence.replace("data.text_column is", "data.validation_text_column is")
        raise UserError(sentence) from error


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
    return replace(
        config,
        source=config.validation_source,
        text_column=config.validation_text_column or config.text_column,
        subset=None,
        revision=config.validation_revision,
        files=None,
        split="validation",
    )


def _open(config: DataConfig, tokenizer: Tokenizer, key: str, splits: tuple[str, ...]) -> Source:
    _refuse_missing(key, config)
    config = hub_files(config, key)
    if config.files is not None:
        return open_named_files(config, tokenizer, key)
    if config.source == "sample":
        refuse_options(config, key)
        return _open_sample(config, split_of(key, "sample", splits, _SAMPLE_SPLITS))
    if is_remote(config.source):
        refuse_options(config, key)
        return _open_url(config, key, splits)
    place = local_path(config.source)
    if not place.exists() and not glob.has_magic(config.source):
        from .dataset_files import open_hub

        return open_hub(config, key, splits)
    manifest = manifest_of(place)
    if manifest is not None:
        refuse_options(config, key)
        return open_token_folder(config, tokenizer, place.absolute(), manifest)
    if _has_configs(place):
        from .dataset_files import open_with_card

        return open_with_card(config, key, splits, place)
    return _open_here(config, tokenizer, key, splits, place)


def _has_configs(folder: Path) -> bool:
    """Whether a folder says, as a data set of the hub does, which of its files are what."""
    card = folder / "README.md"
    if (folder / ".huggingface.yaml").is_file():
        return True
    about = _CARD.match(card.read_text(errors="replace")) if card.is_file() else None
    if about is None:
        return False
    try:
        return "configs" in (yaml.safe_load(about[1]) or ())
    except (yaml.YAMLError, TypeError):  # `datasets` says what is wrong with it
        return True


def _open_here(
    config: DataConfig, tokenizer: Tokenizer, key: str, splits: tuple[str, ...], place: Path
) -> Source:
    refuse_options(config, key)
    found = find_files(config.source, place, key, splits)
    if found.format is None:
        holds = "holds no" if place.is_dir() else "is no" if place.is_file() else "matches no"
        left_out = f" ({found.notes[0].removeprefix(f'{key}: ').removesuffix('.')})" if found.notes else ""
        raise UserError(
            f"{key}: {config.source} {holds} .parquet, .jsonl or .bin file{left_out}{nearest_path(place)}"
        )
    split = split_of(key, config.source, splits, [*found.splits])
    paths = found.splits[split]
    source: Source
    if found.format == "bin":
        from .bin_files import BinFiles

        source = BinFiles(config, tokenizer, paths)
    elif found.format == "json":
        from .jsonl import JsonlSource

        source = JsonlSource(config, paths)
    elif found.format == "parquet":
        from .parquet import ParquetSource

        source = ParquetSource(config, paths)
    else:
        from .dataset_files import open_rare_files

        source = open_rare_files(config, key, split, found)
    source.notes += found.notes
    source.validation_split = supplied_split([*found.splits], split)
    return source


def _refuse_missing(key: str, config: DataConfig) -> None:
    source = config.source
    path = local_path(source)
    is_here = source == "sample" or path.is_dir() or path.is_file() or glob.has_magic(source)
    if not (is_here or is_remote(source) or is_hub_id(source)):
        raise UserError(f"{key}: {source} does not exist{nearest_path(path)}; it may be {LOCAL_CHOICES}")
    refuse_names(hub_files(config, key), key)


def _open_sample(config: DataConfig, split: str) -> Source:
    from ..sample import SAMPLE_DIR, build_sample
    from .parquet import ParquetSource

    folder = build_sample(SAMPLE_DIR, progress=True)
    return ParquetSource(config, [str(folder.absolute() / f"{split}.parquet")])


def _open_url(config: DataConfig, key: str, splits: tuple[str, ...]) -> Source:
    kind = file_format(config.source)
    if kind is None:
        raise UserError(
            f"{key} is {config.source}: a URL must end in {', '.join(FILE_FORMATS)}, or one of JSON lines "
            "compressed"
        )
    urls, notes = _matching(config, key, splits[0])
    split = split_of(key, config.source, splits, [*urls])
    source: Source
    if kind == "json":
        from .jsonl import JsonlSource

        source = JsonlSource(config, urls[split])
    else:
        from .parquet import ParquetSource

        source = ParquetSource(config, urls[split])
    source.notes += notes
    source.validation_split = supplied_split([*urls], split)
    return source


def _matching(config: DataConfig, key: str, wanted: str) -> tuple[dict[str, list[str]], list[str]]:
    """The URLs that a pattern matches, by split where they are of several, and a note about those that are
    left out; any other URL, or one whose file system cannot list files, is itself."""
    from .network import filesystem_of, with_retries

    url = config.source
    filesystem, location = filesystem_of(url, {})
    if not glob.has_magic(location) or url.startswith(("http://", "https://")):
        return {wanted: [url]}, []
    exists = with_retries(lambda: filesystem.exists(location), url, config.timeout_s, opening=True)
    if exists:  # it is no pattern
        return {wanted: [url]}, []
    found = with_retries(lambda: filesystem.glob(location), url, config.timeout_s, opening=True)
    left_out = [path for path in found if is_left_out(path, location)]
    found = sorted({*found} - {*left_out})
    if not found:
        raise FileNotFoundError(f"{key}: {url} matches no file")  # as the server says
    folder = re.split(r"[*?[]", location, maxsplit=1)[0].rpartition("/")[0] + "/"
    splits = divided([path.removeprefix(folder) for path in found], rest_is_train=True)
    if len(splits) < 2:
        splits = {wanted: [path.removeprefix(folder) for path in found]}
    whole = filesystem.unstrip_protocol
    urls = {split: [whole(folder + path) for path in paths] for split, paths in splits.items()}
    return urls, left_out_note(url, key, left_out)
