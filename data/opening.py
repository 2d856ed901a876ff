"""`open_data`: where a run's documents begin, and which of them are held out for validation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import numpy as np

from model.errors import UserError

from .cache import CachedSource, RememberedSource, open_or_remember
from .config import DataConfig
from .corpus import Corpus
from .overlap.copies import Copies
from .overlap.held_out import check_held_out
from .sample import SAMPLE_DIR, is_complete
from .sources import (
    ROWS_PER_SHARD,
    Documents,
    Shard,
    Source,
    is_token_source,
    open_validation_source,
    refuse_missing,
    shard_runs,
)
from .tokenizer import NotTokenizable, Tokenizer, open_tokenizer
from .validation import ValidationSet

CHECKED_DOCUMENTS = 1_000
"""So many validation documents must come back from their tokens."""
SLOW_START_ROWS = 2_000_000
"""More rows than this, decoded before the first batch, get a note."""


def open_data(
    config: DataConfig, say: Callable[[str], object] = lambda sentence: None
) -> tuple[Corpus, ValidationSet]:
    """What a run trains on, and the documents that are held out of it.

    The validation set is the beginning of `data.validation_source`, or of the sample's own validation part,
    or else of the source's last shards: as many as hold `data.validation_tokens` tokens, but at most a tenth
    of all and at least one. Copies of its documents elsewhere in the source are left out of training. With
    `data.cache_dir` tokens are read from there, where it has them.

    Args:
        config: What to open.
        say: Is told before the embedded sample is built.

    Raises:
        UserError: a source or tokenizer does not exist or is not what the config says, there is nothing to
            reserve, or a document of `data.validation_source` is also one of `data.source`: the same id, or
            the same text.
        OSError: a source or a vocabulary cannot be reached.
    """
    refuse_missing(config)
    if config.source == "sample" and not is_complete(SAMPLE_DIR):
        say("building the embedded sample, once; it takes about a minute")
    tokenizer = open_tokenizer(config.tokenizer)
    source = read = open_or_remember(config, tokenizer)
    if config.cache_dir is not None and not is_token_source(config.source):
        read = CachedSource(source, tokenizer, config.cache_dir)
    if config.validation_source is None and config.source == "sample":
        config = replace(config, validation_source="sample")
    shards = source.shards
    if config.validation_source is None:
        # as text where it can be reached: tokens may have lost some of it
        reserved = _reserve(config, read if isinstance(source, RememberedSource) else source, tokenizer)
        for shard in shards[-len(reserved) :] if read is not source else ():
            read.read(shard)  # so that a start without the network finds them too
        shards = shards[: -len(reserved)]
        held_out = _collect(chain.from_iterable(reserved), config.validation_tokens, source.name)
        copies = _copies_of(held_out, tokenizer)
    else:
        held_out_source = open_validation_source(config, tokenizer)
        of_shards = (_of_shard(held_out_source, one, tokenizer) for one in held_out_source.shards)
        held_out = _collect(
            chain.from_iterable(of_shards), config.validation_tokens, config.validation_source
        )
        shards_held_out = [document.shard for document in held_out]
        copies = _copies_of(held_out, tokenizer)
        check_held_out(config, source, held_out_source, shards_held_out, copies, tokenizer)
        source.notes += held_out_source.notes
    source.notes += _notes(config, source, held_out, tokenizer)
    tokens = [document.tokens for document in held_out]
    validation = ValidationSet.of([document.text for document in held_out], tokens, tokenizer)
    return Corpus(read, tokenizer, shards, copies), validation


class _HeldOut(NamedTuple):
    """A document as text and as tokens, and how many tokens GPT-2 makes of it and its end."""

    shard: Shard
    text: str
    tokens: np.ndarray
    gpt2_tokens: int


def _of_shard(
    source: Source, shard: Shard, tokenizer: Tokenizer, read: Documents | None = None
) -> Iterator[_HeldOut]:
    for document in (read or source.read(shard)).kept:
        if isinstance(document, str):
            try:
                text, tokens = document, tokenizer.encode_document(document)
            except NotTokenizable:
                source.leave_out(document, [shard], "not_tokenizable")
                continue
        else:
            text, tokens = tokenizer.decode(document[:-1]), document
        # in GPT-2's vocabulary, so that every tokenizer holds out the same documents
        gpt2 = tokens if tokenizer.name == "gpt2" else open_tokenizer("gpt2").encode_document(text)
        yield _HeldOut(shard, text, tokens, len(gpt2))


def _reserve(config: DataConfig, source: Source, tokenizer: Tokenizer) -> list[list[_HeldOut]]:
    """The documents of a source's last shards, of as many as validation needs."""
    if len(source.shards) < 2:
        raise UserError(
            f"data.source {source.name} is a single shard, so that none can be reserved for validation: "
            "give data.validation_source"
        )
    reserved: list[list[_HeldOut]] = []
    tokens = 0
    at_most = max(1, len(source.shards) // 10)
    for shard, documents in _from_the_end(source):
        reserved.append(list(_of_shard(source, shard, tokenizer, documents)))
        tokens += sum(document.gpt2_tokens for document in reserved[-1])
        # past the tenth only where it holds no document at all
        if tokens and (tokens >= config.validation_tokens or len(reserved) >= at_most):
            break
    if not tokens or len(reserved) == len(source.shards):
        raise UserError(f"data.source {source.name} holds too little text to reserve validation from")
    return reserved[::-1]


def _from_the_end(source: Source) -> Iterator[tuple[Shard, Documents]]:
    """The shards, the last one first. Of a large row group so many are read in order that the number doubles
    each time, as a shard in its middle costs decoding all that stands before."""
    for run in reversed(shard_runs(source.shards)):
        step = 1
        while run:
            run, last, step = run[:-step], run[-step:], 2 * step
            yield from reversed([(shard, source.read(shard)) for shard in last])


def _collect(documents: Iterable[_HeldOut], at_most: int, name: str) -> list[_HeldOut]:
    """Whole documents until the next would pass `at_most` tokens, but at least one."""
    held_out: list[_HeldOut] = []
    total = 0
    for document in documents:
        total += document.gpt2_tokens
        if held_out and total > at_most:
            break
        held_out.append(document)
    if not held_out:
        raise UserError(f"The part of {name} that is held out for validation holds no text")
    return held_out


def _copies_of(held_out: Sequence[_HeldOut], tokenizer: Tokenizer) -> Copies:
    texts = [document.text for document in held_out]
    if not tokenizer.keeps_text:  # training documents may come as either
        texts += [tokenizer.decode(document.tokens[:-1]) for document in held_out]
    return Copies(texts)


def _notes(
    config: DataConfig, source: Source, held_out: Sequence[_HeldOut], tokenizer: Tokenizer
) -> Iterator[str]:
    """What a user should know of how the source and the options go together."""
    tried = held_out[:CHECKED_DOCUMENTS]
    changed = sum(tokenizer.decode(document.tokens[:-1]) != document.text for document in tried)
    if changed:
        yield (
            f"data.tokenizer: {tokenizer.name} does not give back {changed} of {len(tried)} validation "
            "documents as they were: what it loses is free, so its bits per byte are too low."
        )
    largest = max(map(len, shard_runs(source.shards))) * ROWS_PER_SHARD
    if config.lanes * largest // 2 > SLOW_START_ROWS and source.decodes_from_group_start:
        yield (
            f"data.source: row groups of {largest:,} rows make every start slow, as {config.lanes} lanes "
            "begin inside of them: scripts/tokenize_data.py makes token shards, which start at once."
        )
