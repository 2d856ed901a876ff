"""A source as one tokenizer reads it, and the part of it that training may see."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .overlap.copies import Copies
from .sources import BadRow, Document, Documents, Shard, Source, corpus_fingerprint
from .tokenizer import NotTokenizable, Tokenizer


@dataclass(frozen=True, eq=False)
class Corpus:
    """What lanes are made of.

    Attributes:
        source: The documents.
        tokenizer: Turns them into tokens.
        shards: The shards to train on; the others of the source are held out.
        held_out: Finds copies of the validation documents, which are left out of training.
    """

    source: Source
    tokenizer: Tokenizer
    shards: tuple[Shard, ...]
    held_out: Copies = field(default_factory=lambda: Copies([]), repr=False)

    @property
    def fingerprint(self) -> str:
        """A hash of the source and the tokenizer."""
        return corpus_fingerprint(self.source, self.tokenizer)

    def read(self, shard: Shard) -> Documents:
        """The documents of a shard; see `Source.read`."""
        return self.source.read(shard)

    def rows(self, shard: Shard) -> tuple[list[Document | BadRow], Counter[str]]:
        """The documents of a shard, and how many were left out by reason; see `Source.read`.

        Of those that are tokens, the copies of validation documents are a BadRow in their place.
        """
        kept, bad = self.source.read(shard)
        rows: list[Document | BadRow] = [*kept]
        if kept and not isinstance(kept[0], str):  # a source has either
            for number, copy in self.held_out.find_among(kept, self.tokenizer):
                rows[number] = BadRow(copy.reason)
        return rows, bad

    def tokens(self, row: Document | BadRow) -> np.ndarray | BadRow:
        """The tokens of one of `rows` and the `eot` that closes it, or why it is left out.

        A text is where it is a copy of a validation document, and where the tokenizer fails on it.
        """
        if not isinstance(row, str):
            return row
        # what a tokenizer loses is lost to copies too, whether they come as text or as tokens
        by_text = self.tokenizer.keeps_text
        if by_text and (copy := self.held_out.find(row, self.tokenizer)):
            return BadRow(copy.reason)
        try:
            tokens = self.tokenizer.encode_document(row)
        except NotTokenizable:
            return BadRow("not_tokenizable")
        if not by_text and (copy := self.held_out.find(tokens, self.tokenizer)):
            return BadRow(copy.reason)
        return tokens
