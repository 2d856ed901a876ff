"""`data.cache_dir`: what was tokenised once is read back, by later epochs, other runs and resumes.

Beside the tokens stands what a remote source holds, so that a run can start without the network.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from pathlib import Path
from typing import TypedDict

from model.errors import UserError
from model.files import write_text
from model.redaction import redact

from .config import DataConfig
from .sources import (
    FORM,
    SHARDS_FORMAT,
    BadRow,
    DamagedShard,
    Document,
    Documents,
    Shard,
    Source,
    as_rows,
    corpus_fingerprint,
    open_source,
    read_shard,
    shard_path,
    tokenized,
    write_shard,
)
from .tokenizer import Tokenizer

_log = logging.getLogger(__name__)


class CachedSource(Source):
    """A source as token documents, each shard tokenised when it is first read and kept as a file.

    Several processes may share a folder. A damaged file is made again; one that cannot be written is done
    without.

    Attributes:
        folder: Where the shards are, a folder in `cache_dir`: another with anything that changes the tokens.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, cache_dir: str) -> None:
        """Raises UserError where `cache_dir` cannot be written."""
        super().__init__(source.config, source.file_sizes, source.shards, source.revision, source.versions)
        self.fingerprint = source.fingerprint
        self.older_fingerprint = source.older_fingerprint
        self.shards_per_window = source.shards_per_window
        self.notes = source.notes
        self._source = source
        self._tokenizer = tokenizer
        self._warned = False
        key = [SHARDS_FORMAT, corpus_fingerprint(source, tokenizer), self.config.max_document_bytes]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.folder = os.path.abspath(os.path.join(os.path.expanduser(cache_dir), name))
        try:
            os.makedirs(self.folder, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise UserError(
                f"data.cache_dir is {cache_dir!r}, which cannot be written ({error.strerror}): "
                "name a folder that can, or leave it out"
            ) from error

    def ids(self, shard: Shard) -> list[str] | None:
        return self._source.ids(shard)

    def _rows(self, shard: Shard) -> list[Document | BadRow | None]:
        path = shard_path(self.folder, shard.index)
        documents = read_if_final(path, self._tokenizer.eot, self.config)
        if documents is None:
            documents, _ = tokenized(self._source, shard, self._tokenizer)
            if not documents.bad["unreadable"]:
                self._keep(path, documents)
        return as_rows(documents)

    def _keep(self, path: str, documents: Documents) -> None:
        try:
            write_shard(path, documents, self._tokenizer.dtype)
        except OSError as error:
            if not self._warned:
                _log.warning("data.cache_dir: %s cannot be written (%s); going on without", path, error)
            self._warned = True


def read_if_final(path: str, eot: int, config: DataConfig) -> Documents | None:
    """The documents of a shard; None where the source must be read: the shard is not there or damaged, part
    of its source was unreadable, or it stands for bad documents that `data.on_bad_document` stops at."""
    try:
        documents = read_shard(path, eot)
    except (OSError, DamagedShard):
        return None
    if documents.bad["unreadable"] or (documents.bad and config.on_bad_document == "stop"):
        return None
    return documents


class RememberedSource(Source):
    """The files and shards of a source that cannot be reached; `data.cache_dir` may have its tokens."""

    def __init__(self, config: DataConfig, remembered: "_Remembered") -> None:
        shards = [Shard(*shard) for shard in remembered["shards"]]
        super().__init__(config, remembered["file_sizes"], shards, remembered["revision"])
        self.fingerprint = remembered["fingerprint"]
        self.older_fingerprint = remembered["older_fingerprint"]
        self.shards_per_window = remembered["shards_per_window"]
        self.validation_split = remembered["validation_split"]
        self.notes = [
            f"data.source: {config.source} cannot be reached, so what data.cache_dir has of it is read."
        ]

    def _rows(self, shard: Shard) -> Sequence[Document | BadRow | None]:
        raise ConnectionError(
            f"{shard.path} cannot be reached, and data.cache_dir does not have its shard {shard.index} yet: "
            "once it can be, the same command goes on from there"
        )


class _Remembered(TypedDict):
    """What a note in `data.cache_dir` says of a remote source."""

    fingerprint: str
    older_fingerprint: str
    revision: str | None
    validation_split: str | None
    file_sizes: dict[str, int]
    shards: list[tuple[int, str, int, int, int]]
    shards_per_window: int


def open_or_remember(config: DataConfig, tokenizer: Tokenizer) -> Source:
    """`open_source`; with `data.cache_dir` a remote source is noted there, and opened from that note when it
    cannot be reached.

    Raises:
        UserError, OSError: as `open_source`.
    """
    if config.cache_dir is None:
        return open_source(config, tokenizer)
    try:
        source = open_source(config, tokenizer)
    except OSError:
        with suppress(FileNotFoundError):
            return RememberedSource(config, json.loads(_note(config, config.cache_dir).read_text()))
        raise
    if source.is_remote:
        remembered: _Remembered = {
            "fingerprint": source.fingerprint,
            "older_fingerprint": source.older_fingerprint,
            "revision": source.revision,
            "validation_split": source.validation_split,
            "file_sizes": source.file_sizes,
            "shards": [astuple(shard) for shard in source.shards],
            "shards_per_window": source.shards_per_window,
        }
        # a run that goes on asks for the commit that it began with
        for one in (config, replace(config, revision=source.revision)):
            with suppress(OSError):  # `CachedSource` says so
                write_text(_note(one, config.cache_dir), json.dumps(remembered))
    return source


def _note(config: DataConfig, cache_dir: str) -> Path:
    asked_for = [redact(config.source), config.subset, config.revision, config.split, config.text_column]
    asked_for += [config.files] if config.files is not None else []
    # of another form than those of older NormLabs, which knew no content
    name = hashlib.sha256(json.dumps([FORM, *asked_for]).encode()).hexdigest()[:16]
    return Path(cache_dir).expanduser() / f"source-{name}.json"
