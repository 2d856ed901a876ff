"""A source as one tokenizer reads it, and the part of it that training may see."""

from dataclasses import dataclass, field

import numpy as np
import xxhash

from .sources import Document, Documents, Shard, Source, corpus_fingerprint
from .tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Corpus:
    """What lanes are made of.

    Attributes:
        source: The documents.
        tokenizer: Turns them into tokens.
        shards: The shards to train on; the others of the source are held out.
        held_out: `document_digest` of every validation document: a copy of one is left out of training.
    """

    source: Source
    tokenizer: Tokenizer
    shards: tuple[Shard, ...]
    held_out: frozenset[bytes] = field(default=frozenset(), repr=False)

    @property
    def fingerprint(self) -> str:
        """A hash of the source and the tokenizer."""
        return corpus_fingerprint(self.source, self.tokenizer)

    def read(self, shard: Shard) -> Documents:
        """The documents of a shard; see `Source.read`."""
        return self.source.read(shard)

    def tokens(self, document: Document) -> np.ndarray | None:
        """A document's tokens and the `eot` that closes it; None for a copy of a validation document."""
        tokens = self.tokenizer.encode_document(document) if isinstance(document, str) else document
        return None if self.held_out and document_digest(tokens) in self.held_out else tokens


def document_digest(tokens: np.ndarray) -> bytes:
    """A hash of a document: two with the same text and tokenizer have the same."""
    return xxhash.xxh3_128_digest(tokens.data)
