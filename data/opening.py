"""`open_data`: where a run's documents begin, and which of them are held out for validation."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from model.errors import UserError

from .cache import CachedSource, RememberedSource, open_or_remember
from .config import MOST_LANES, DataConfig
from .corpus import Corpus, lanes_of
from .overlap.copies import Copies
from .overlap.held_out import check_held_out
from .sample import SAMPLE_DIR, is_complete
from .sources import (
    Documents,
    Shard,
    Source,
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

    The validation set is the beginning of `data.validation_source`, or of the source's own validation part or
    split, or else the source's last documents: as many as hold `data.validation_tokens` tokens, but at most
    a tenth of all and at least one. Training never reads the shards that these are in, and leaves out copies
    of them elsewhere. With `data.cache_dir` tokens are read from there, where it has them.

    Args:
        config: What to open.
        say: Is told before the embedded sample is built, and which documents are held out.

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
    if config.cache_dir is not None and not source.holds_tokens:
        read = CachedSource(source, tokenizer, config.cache_dir)
    shards = source.shards
    validation_revision = None
    held_out_source, where = _held_out_source(config, source, tokenizer)
    if held_out_source is None:
        # as text where it can be reached: tokens may have lost some of it
        reserved = _reserve(config, read if isinstance(source, RememberedSource) else source, tokenizer)
        for shard in shards[-len(reserved) :] if read is not source else ():
            read.read(shard)  # so that a start without the network finds them too
        shards = shards[: -len(reserved)]
        of_end = islice(chain.from_iterable(reserved), _tenth(source))
        held_out = _collect(of_end, config.validation_tokens, source.name)
        where = f"the last {len(held_out):,} documents of {source.name}"
        copies = _copies_of(held_out, tokenizer)
    else:
        documents = _documents_of(held_out_source, config, tokenizer)
        held_out = _collect(documents, config.validation_tokens, where)
        copies = _copies_of(held_out, tokenizer)
        # whoever splits a source may leave copies; a source apart is named in order to have none
        if config.validation_source is not None:
            shards_held_out = [document.shard for document in held_out]
            check_held_out(config, source, held_out_source, shards_held_out, copies, tokenizer)
            validation_revision = held_out_source.revision
        source.notes += [note for note in held_out_source.notes if note not in source.notes]
    say(f"validation: {where}")
    tokens = [document.tokens for document in held_out]
    validation = ValidationSet.of([document.text for document in held_out], tokens, tokenizer)
    corpus = Corpus(read, tokenizer, shards, copies, validation_revision)
    source.notes += _notes(config, corpus, held_out)
    return corpus, validation


class _HeldOut(NamedTuple):
    """A document as text and as tokens, and how many tokens GPT-2 makes of it and its end."""

    shard: Shard
    text: str
    tokens: np.ndarray
    gpt2_tokens: int


def _held_out_source(config: DataConfig, source: Source, tokenizer: Tokenizer) -> tuple[Source | None, str]:
    """What the held-out documents are the beginning of, and its name; no source where they are the end of
    `source`."""
    if config.validation_source is not None:
        return open_validation_source(config, tokenizer), f"data.validation_source {config.validation_source}"
    if config.source == "sample":
        sample = replace(config, validation_source="sample")
        return open_validation_source(sample, tokenizer), "the sample's own part"
    if source.validation_split is None:
        if config.validation_text_column is not None:
            source.notes.append(
                "data.validation_text_column does nothing: validation is the end of the source itself."
            )
        return None, source.name
    column = config.validation_text_column or config.text_column
    of_split = replace(config, split=source.validation_split, text_column=column)
    found = open_or_remember(replace(of_split, revision=source.revision or config.revision), tokenizer)
    files = len(found.file_sizes)
    name = f"the split `{of_split.split}` of {source.name} ({files:,} file{'s' * (files > 1)})"
    return found, name


def _documents_of(source: Source, config: DataConfig, tokenizer: Tokenizer) -> Iterator[_HeldOut]:
    """The documents of a source; with `data.cache_dir` the tokens of a remote one are kept there, so that a
    start without the network finds them."""
    cached = None
    if config.cache_dir is not None and source.is_remote:
        cached = CachedSource(source, tokenizer, config.cache_dir)
    for shard in source.shards:
        of_cache = cached.read(shard) if cached else None
        # as text where it can be reached: tokens may have lost some of it
        found = of_cache if of_cache and isinstance(source, RememberedSource) else source.read(shard)
        yield from _of_shard(source, shard, tokenizer, found)


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
    rows = 0
    at_most, tenth = max(1, len(source.shards) // 10), _tenth(source)
    for shard, documents in _from_the_end(source):
        reserved.append(list(_of_shard(source, shard, tokenizer, documents)))
        tokens += sum(document.gpt2_tokens for document in reserved[-1])
        rows += shard.rows
        is_tenth = len(reserved) >= at_most or rows >= tenth
        # past the tenth only where it holds no document at all
        if tokens and (tokens >= config.validation_tokens or is_tenth):
            break
    if not tokens or len(reserved) == len(source.shards):
        raise UserError(f"data.source {source.name} holds too little text to reserve validation from")
    return reserved[::-1]


def _tenth(source: Source) -> int:
    """A tenth of the documents, at least one; any number where shards do not say how many they hold."""
    rows = sum(shard.rows for shard in source.shards)
    return max(1, rows // 10) if rows else sys.maxsize


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
        raise UserError(f"validation: {name} holds no text")
    return held_out


def _copies_of(held_out: Sequence[_HeldOut], tokenizer: Tokenizer) -> Copies:
    texts = [document.text for document in held_out]
    if not tokenizer.keeps_text:  # training documents may come as either
        texts += [tokenizer.decode(document.tokens[:-1]) for document in held_out]
    return Copies(texts)


def _notes(config: DataConfig, corpus: Corpus, held_out: Sequence[_HeldOut]) -> Iterator[str]:
    """What a user should know of how the source and the options go together."""
    source, tokenizer, lanes = corpus.source, corpus.tokenizer, lanes_of(config, corpus)
    if config.lanes is None and lanes < MOST_LANES:
        number = len(corpus.shards)
        yield f"data.lanes: {lanes}, as the source has {number} shard{'s' * (number > 1)} to train on."
    tried = held_out[:CHECKED_DOCUMENTS]
    changed = sum(tokenizer.decode(document.tokens[:-1]) != document.text for document in tried)
    if changed:
        yield (
            f"data.tokenizer: {tokenizer.name} does not give back {changed} of {len(tried)} validation "
            "documents as they were: what it loses is free, so its bits per byte are too low."
        )
    largest = max(sum(shard.rows for shard in run) for run in shard_runs(source.shards))
    if lanes * largest // 2 > SLOW_START_ROWS and source.decodes_from_group_start:
        yield (
            f"data.source: row groups of {largest:,} rows make every start slow, as {lanes} lanes "
            "begin inside of them: scripts/tokenize_data.py makes token shards, which start at once."
        )
