"""What a remote source holds, kept beside its cached tokens, so that a run can start without the network."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple

from .config import DataConfig
from .sources.documents import BadRow, Document, Shard, Source
from .sources.network import is_remote
from .sources.resolve import open_source
from .sources.shard_file import write_atomically
from .tokenizer import Tokenizer


class RememberedSource(Source):
    """The files and shards of a source that cannot be reached; `data.cache_dir` may have its tokens."""

    def __init__(self, config: DataConfig, file_sizes: dict[str, int], shards: Sequence[Shard]) -> None:
        super().__init__(config, file_sizes, shards)
        self.notes = [
            f"data.source: {config.source} cannot be reached, so what data.cache_dir has of it is read."
        ]

    def _rows(self, shard: Shard) -> Sequence[Document | BadRow | None]:
        raise ConnectionError(
            f"{shard.path} cannot be reached, and data.cache_dir does not have its shard {shard.index} yet: "
            "once it can be, the same command goes on from there."
        )


def open_or_remember(config: DataConfig, tokenizer: Tokenizer) -> Source:
    """`open_source`; with `data.cache_dir` a remote source is noted there, and opened from that note when it
    cannot be reached.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: as `open_source`.
    """
    if config.cache_dir is None:
        return open_source(config, tokenizer)
    asked_for = [config.source, config.subset, config.revision, config.split, config.text_column]
    name = hashlib.sha256(json.dumps(asked_for).encode()).hexdigest()[:16]
    note = os.path.join(os.path.expanduser(config.cache_dir), f"source-{name}.json")
    try:
        source = open_source(config, tokenizer)
    except OSError:
        if not os.path.exists(note):
            raise
        with open(note) as file:
            content = json.load(file)
        shards = [Shard(*shard) for shard in content["shards"]]
        source = RememberedSource(config, content["file_sizes"], shards)
        source.fingerprint = content["fingerprint"]
        return source
    if any(map(is_remote, source.file_sizes)):
        content = {
            "fingerprint": source.fingerprint,
            "file_sizes": source.file_sizes,
            "shards": list(map(astuple, source.shards)),
        }
        with suppress(OSError):  # `CachedSource` says so
            os.makedirs(os.path.dirname(note), exist_ok=True)
            write_atomically(note, json.dumps(content).encode())
    return source
