"""A source as one tokenizer reads it, and the part of it that training may see."""

from dataclasses import dataclass, field, replace

import numpy as np
import xxhash

from .config import MOST_LANES, DataConfig
from .sources import (
    Document,
    Documents,
    Shard,
    Source,
    corpus_fingerprint,
    older_corpus_fingerprint,
)
from .tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Corpus:
    """What lanes are made of.

    Attributes:
        source: The documents.
        tokenizer: Turns them into tokens.
        shards: The shards to train on; the others of the source are held out.
        held_out: `document_digest` of every validation document: a copy of one is left out of training.
        validation_revision: The commit of a validation source on the hub.
    """

    source: Source
    tokenizer: Tokenizer
    shards: tuple[Shard, ...]
    held_out: frozenset[bytes] = field(default=frozenset(), repr=False)
    validation_revision: str | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of the source and the tokenizer."""
        return corpus_fingerprint(self.source, self.tokenizer)

    @property
    def fingerprints(self) -> tuple[str, str]:
        """The same, and what it was before NormLab hashed the content of files."""
        return self.fingerprint, older_corpus_fingerprint(self.source, self.tokenizer)

    def read(self, shard: Shard) -> Documents:
        """The documents of a shard; see `Source.read`."""
        return self.source.read(shard)

    def tokens(self, document: Document) -> np.ndarray | None:
        """A document's tokens and the `eot` that closes it; None for a copy of a validation document."""
        tokens = self.tokenizer.encode_document(document) if isinstance(document, str) else document
        return None if self.held_out and document_digest(tokens) in self.held_out else tokens


def lanes_of(config: DataConfig, corpus: Corpus) -> int:
    """`data.lanes`, or where it is left out the largest power of two that the training shards allow."""
    return config.lanes or min(MOST_LANES, 1 << (len(corpus.shards).bit_length() - 1))


def settled(config: DataConfig, corpus: Corpus) -> DataConfig:
    """The config with what it leaves open and the source decides: the lanes, and the commits on the hub."""
    return replace(
        config,
        lanes=lanes_of(config, corpus),
        revision=corpus.source.revision or config.revision,
        validation_revision=corpus.validation_revision or config.validation_revision,
    )


def document_digest(tokens: np.ndarray) -> bytes:
    """A hash of a document: two with the same text and tokenizer have the same."""
    return xxhash.xxh3_128_digest(tokens.data)
