"""The validation set: fixed documents that training never sees, every token of which is scored once."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import xxhash

from data.cache import CachedSource
from data.config import DataConfig
from data.corpus import Corpus, digest
from data.documents import Document, Shard, Source
from data.packing import IGNORED_TARGET
from data.sources import open_source, open_validation_source
from data.token_shards import is_token_source
from data.tokenizer import Tokenizer, gpt2_encoding, open_tokenizer

CHECKED_AT_START_BYTES = 2**28
"""Local sources up to this size are searched for validation documents before a run begins."""


@dataclass(frozen=True)
class ValidationSet:
    """Documents as one stream of N targets.

    Attributes:
        tokens: (N + 1,): `eot`, then every document followed by its `eot`. Target i is `tokens[i + 1]`.
        document: (N,) int32: which document target i belongs to, the `eot` that closes it included.
        bytes: (documents,) int64: the UTF-8 bytes of each document's text.
        text_fingerprint: A hash of the texts, the same for every tokenizer.
    """

    tokens: np.ndarray
    document: np.ndarray
    bytes: np.ndarray
    text_fingerprint: str

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the tokens as little-endian integers (uint16, or uint32 for a large vocabulary)."""
        return hashlib.sha256(self.tokens.astype(self.tokens.dtype.newbyteorder("<")).tobytes()).hexdigest()

    def blocks(self, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, each (ceil(N / block_size), block_size) int64, with every target in them once.

        What the last block lacks is filled with `eot` inputs and targets of `IGNORED_TARGET`.
        """
        count = -(-len(self.document) // block_size)
        inputs = torch.full((count * block_size,), int(self.tokens[0]), dtype=torch.int64)
        targets = torch.full((count * block_size,), IGNORED_TARGET, dtype=torch.int64)
        inputs[: len(self.document)] = torch.from_numpy(self.tokens[:-1].astype(np.int64))
        targets[: len(self.document)] = torch.from_numpy(self.tokens[1:].astype(np.int64))
        return inputs.view(count, block_size), targets.view(count, block_size)


def open_data(config: DataConfig) -> tuple[Corpus, ValidationSet]:
    """What a run trains on, and the documents that are held out of it.

    The validation set is the beginning of `data.validation_source`, or of the sample's own validation part,
    or else of the source's last shards: as many as hold `data.validation_tokens` tokens, but at most a tenth
    of all and at least one. Copies of its documents elsewhere in the source are left out of training.

    Raises:
        FileNotFoundError: a source or tokenizer does not exist or cannot be reached.
        ValueError: a source is not what the config says, there is nothing to reserve, or a document of
            `data.validation_source` is also one of `data.source`: the same id, or the same text.
    """
    tokenizer = open_tokenizer(config.tokenizer)
    source = open_source(config, tokenizer)
    if config.validation_source is None and config.source == "sample":
        config = replace(config, validation_source="sample")
    if config.validation_source is None:
        reserved = _reserve(config, source, tokenizer)
        shards = source.shards[: len(source.shards) - len(reserved)]
        documents = _documents(source, reserved)
        held_out = _collect(documents, config.validation_tokens, source.name, tokenizer)
    else:
        held_out_source = open_validation_source(config, tokenizer)
        shards = source.shards
        documents = _documents(held_out_source, held_out_source.shards)
        held_out = _collect(documents, config.validation_tokens, config.validation_source, tokenizer)
        _check_held_out(config, source, held_out_source, held_out, tokenizer)
    if config.cache_dir is not None and not is_token_source(config.source):
        source = CachedSource(source, tokenizer, config.cache_dir)
    corpus = Corpus(source, tokenizer, shards, frozenset(map(digest, held_out.tokens)))
    return corpus, _validation_set(held_out, tokenizer)


class _HeldOut(NamedTuple):
    """The documents of the validation set, as texts and as tokens."""

    texts: list[str]
    tokens: list[np.ndarray]


def _reserve(config: DataConfig, source: Source, tokenizer: Tokenizer) -> tuple[Shard, ...]:
    """The last shards of a source, as many as validation needs."""
    if len(source.shards) < 2:
        raise ValueError(
            f"data.source {source.name} is a single shard, so that none can be reserved for validation: "
            "give data.validation_source."
        )
    count = tokens = 0
    at_most = max(1, len(source.shards) // 10)
    # past the tenth only where it holds no document at all
    while (tokens < config.validation_tokens and count < at_most) or not tokens:
        if count == len(source.shards) - 1:
            raise ValueError(f"data.source {source.name} holds too little text to reserve validation from.")
        count += 1
        documents = source.read(source.shards[-count]).kept
        tokens += sum(_length(document, tokenizer) for document in documents)
    return source.shards[-count:]


def _collect(documents: Iterable[Document], at_most: int, name: str, tokenizer: Tokenizer) -> _HeldOut:
    """Whole documents until the next would pass `at_most` tokens, but at least one."""
    held_out = _HeldOut([], [])
    total = 0
    for document in documents:
        total += _length(document, tokenizer)
        if held_out.tokens and total > at_most:
            break
        if isinstance(document, str):
            held_out.texts.append(document)
            held_out.tokens.append(tokenizer.encode_document(document))
        else:
            held_out.texts.append(tokenizer.decode(document[:-1]))
            held_out.tokens.append(document)
    if not held_out.tokens:
        raise ValueError(f"The part of {name} that is held out for validation holds no text.")
    return held_out


def _check_held_out(
    config: DataConfig, source: Source, held_out_source: Source, held_out: _HeldOut, tokenizer: Tokenizer
) -> None:
    """Raises ValueError for a document that stands in both; a source that is too large to be searched now is
    searched as it is read."""

    def overlap(what: str) -> ValueError:
        return ValueError(
            f"data.validation_source {config.validation_source} is not held out: {what} is in data.source "
            f"{source.name} too."
        )

    shared = sorted(held_out_source.file_sizes.keys() & source.file_sizes.keys())
    if shared:
        raise overlap(shared[0])
    remote = any("://" in path for path in source.file_sizes)
    if remote or sum(source.file_sizes.values()) > CHECKED_AT_START_BYTES:
        return
    ids = {id_ for shard in held_out_source.shards for id_ in held_out_source.ids(shard) or ()}
    seen = {xxhash.xxh3_128_digest(text.encode()) for text in held_out.texts} | set(
        map(digest, held_out.tokens)
    )
    for shard in source.shards:
        for id_ in source.ids(shard) or ():
            if id_ in ids:
                raise overlap(f"the document with the id {id_}")
        for document in source.read(shard).kept:
            if _text_or_token_hash(document) in seen:
                raise overlap(f"the document that begins {_beginning(document, tokenizer)!r}")


def _validation_set(held_out: _HeldOut, tokenizer: Tokenizer) -> ValidationSet:
    opening = np.array([tokenizer.eot], dtype=tokenizer.dtype)
    lengths = [len(tokens) for tokens in held_out.tokens]
    return ValidationSet(
        tokens=np.concatenate([opening, *held_out.tokens]),
        document=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        bytes=np.array([len(text.encode()) for text in held_out.texts]),
        text_fingerprint=hashlib.sha256(json.dumps(held_out.texts).encode()).hexdigest(),
    )


def _documents(source: Source, shards: Iterable[Shard]) -> Iterator[Document]:
    for shard in shards:
        yield from source.read(shard).kept


def _length(document: Document, tokenizer: Tokenizer) -> int:
    """The tokens of a document and its end, in GPT-2's vocabulary: every tokenizer holds out the same."""
    if not isinstance(document, str):
        if tokenizer.name == "gpt2":
            return len(document)
        document = tokenizer.decode(document[:-1])
    return len(gpt2_encoding().encode_to_numpy(document, disallowed_special=())) + 1


def _text_or_token_hash(document: Document) -> bytes:
    return xxhash.xxh3_128_digest(document.encode()) if isinstance(document, str) else digest(document)


def _beginning(document: Document, tokenizer: Tokenizer) -> str:
    text = document if isinstance(document, str) else tokenizer.decode(document[:-1])
    return " ".join(text[:200].split())[:60]
