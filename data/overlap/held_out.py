"""The check before a run begins that what is held out is no part of what is trained on."""

import os
from collections.abc import Iterable

from model.errors import UserError

from ..config import DataConfig
from ..sources import Document, Shard, Source, is_remote
from ..tokenizer import Tokenizer
from .copies import Copies

CHECKED_AT_START_BYTES = 2**28
"""Local sources up to this size are searched for validation documents before a run begins."""


def check_held_out(
    config: DataConfig,
    source: Source,
    held_out_source: Source,
    held_out_shards: Iterable[Shard],
    copies: Copies,
    tokenizer: Tokenizer,
) -> None:
    """Raises UserError for a file, an id or a text that stands in both sources, copies and near copies too.

    A source that is too large to be searched now is searched as it is read.

    Args:
        config: What names them.
        source: What is trained on.
        held_out_source: `data.validation_source`.
        held_out_shards: The shards of it that the validation documents are from.
        copies: Finds copies of the validation documents.
        tokenizer: Decodes documents that are tokens.
    """

    def overlap(what: str) -> UserError:
        return UserError(
            f"data.validation_source {config.validation_source} is not held out: {what} is in data.source "
            f"{source.name} too"
        )

    held_out_files = set(map(_real_path, held_out_source.file_sizes))
    for path in source.file_sizes:
        if _real_path(path) in held_out_files:
            raise overlap(path)
    if source.is_remote or sum(source.file_sizes.values()) > CHECKED_AT_START_BYTES:
        return
    ids = {id_ for shard in dict.fromkeys(held_out_shards) for id_ in held_out_source.ids(shard) or ()}
    for shard in source.shards if ids else ():
        for id_ in source.ids(shard) or ():
            if id_ in ids:
                raise overlap(f"the document with the id {id_}")
    for shard in source.shards:
        documents = source.read(shard).kept
        for number, copy in copies.find_among(documents, tokenizer):
            changed = ", with other spaces, quotes, dashes or Unicode forms,"
            how = changed if copy.reason == "held_out_near" else ""
            raise overlap(f"the document that begins {_beginning(documents[number], tokenizer)!r}{how}")


def _real_path(path: str) -> str:
    return path if is_remote(path) else os.path.realpath(path)


def _beginning(document: Document, tokenizer: Tokenizer) -> str:
    text = document if isinstance(document, str) else tokenizer.decode(document[:-1])
    return " ".join(text[:200].split())[:60]
