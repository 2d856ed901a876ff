"""A source as one tokenizer reads it, and the part of it that training may see."""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from .config import MOST_LANES, DataConfig
from .interrupts import check_interrupted
from .overlap.copies import Copies
from .sources import (
    BadRow,
    Document,
    Documents,
    Shard,
    Source,
    corpus_fingerprint,
    older_corpus_fingerprint,
)
from .tokenizer import NotTokenizable, Tokenizer


@dataclass(frozen=True, eq=False)
class Corpus:
    """What lanes are made of.

    Attributes:
        source: The documents.
        tokenizer: Turns them into tokens.
        shards: The shards to train on; the others of the source are held out.
        held_out: Finds copies of the validation documents, which are left out of training.
        validation_revision: The commit of a validation source on the hub.
    """

    source: Source
    tokenizer: Tokenizer
    shards: tuple[Shard, ...]
    held_out: Copies = field(default_factory=lambda: Copies([]), repr=False)
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

    def rows(self, shard: Shard) -> tuple[list[Document | BadRow], Counter[str]]:
        """The documents of a shard, and how many were left out by reason; see `Source.read`.

        Of those that are tokens, the copies of validation documents are a BadRow in their place. Raises
        Interrupted.
        """
        check_interrupted()
        kept, bad = self.source.read(shard)
        rows: list[Document | BadRow] = [*kept]
        if kept and not isinstance(kept[0], str):  # a source has either
            for number, copy in self.held_out.find_among(kept, self.tokenizer):
                rows[number] = BadRow(copy.reason)
        return rows, bad

    def tokens(self, row: Document | BadRow) -> np.ndarray | BadRow:
        """The tokens of one of `rows` and the `eot` that closes it, or why it is left out.

        A text is where it is a copy of a validation document, and where the tokenizer fails on it. Raises
        Interrupted: a window of documents may take half a minute.
        """
        check_interrupted()
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
