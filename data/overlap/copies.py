"""Copies of validation documents: the same text, or nearly: the same once it is normalised."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import xxhash

from ..sources import Document
from ..tokenizer import Tokenizer
from .beginnings import Beginnings, first_letters

END = 24
"""So many normalised characters at the beginning, and at the end, are compared before a whole document is."""
_WINDOW = 64
# a cut may change so many normalised characters before it, as a combining mark does that it loses
_SPARE = 16

_QUOTES = "'\"`´‘’‚‛“”„‟‹›«»′″‵‶「」『』〝〞〟＂＇"  # noqa: RUF001
_DASHES = "-‐‑‒–—―−⸺⸻"  # noqa: RUF001
_INVISIBLE = "\u00ad\u200b\u2060\ufeff"  # soft hyphen, zero-width space and joiner, byte order mark
_FOLDED = str.maketrans(
    dict.fromkeys(_QUOTES, "'") | dict.fromkeys(_DASHES, "-") | dict.fromkeys(_INVISIBLE, "")
)
_RUN_OF_ONE = re.compile("''+|--+")


def normalised(text: str) -> str:
    """A text as near copies share it.

    NFKC; spaces and line ends as one space, none at the ends; every quotation mark and every run of them as
    ', every dash and every run as -; no invisible characters. Case, words and other punctuation stay.
    """
    text = text.translate(_FOLDED)
    if not text.isascii():
        # once more: some are made by NFKC of others
        text = unicodedata.normalize("NFKC", text).translate(_FOLDED)
    return " ".join(_RUN_OF_ONE.sub(lambda run: run[0][0], text).split())


class Copy(NamedTuple):
    """How a document is one of the validation set.

    Attributes:
        reason: Of `BAD_REASONS`.
        text: The hash of its text.
        normalised: The hash of its normalised text.
    """

    reason: Literal["held_out", "held_out_near"]
    text: bytes
    normalised: bytes


class Copies:
    """Finds the documents that are copies of some texts.

    Of most documents only the beginning is looked at: a copy's is that of a text, normalised.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._beginnings: Beginnings | None = None
        self._heads: set[str] = set()
        self._tails: set[str] = set()
        self._exact: set[bytes] = set()
        self._near: set[bytes] = set()
        self._letters: list[str] = []
        for text in texts:
            of_text = normalised(text)
            self._letters.append(first_letters(of_text))
            self._heads.add(of_text[:END])
            self._tails.add(of_text[-END:])
            self._exact.add(_digest(text))
            self._near.add(_digest(of_text))

    def find_among(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[tuple[int, Copy]]:
        """The copies among the documents of a shard, by their number there."""
        for number in self._candidates(documents, tokenizer):
            if copy := self.find(documents[number], tokenizer):
                yield number, copy

    def _candidates(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Sequence[int]:
        if not documents or not self._near:
            return ()
        if isinstance(documents[0], str):  # a source has either texts or tokens
            return range(len(documents))
        if self._beginnings is None:  # not before: most sources are of text
            self._beginnings = Beginnings(self._letters, tokenizer)
        return self._beginnings.candidates(documents)  # type: ignore[arg-type]

    def find(self, document: Document, tokenizer: Tokenizer) -> Copy | None:
        """How a document is a copy; None where it is none. Tokens, with their `eot`, are decoded."""
        if isinstance(document, str):
            return self._of_text(document) if self._may_begin(document) else None
        count = _WINDOW // 2
        while count < len(document) - 1:
            head = normalised(tokenizer.decode(document[:count]))
            if len(head) >= END + _SPARE:
                if head[:END] not in self._heads:
                    return None
                break
            count *= 4
        return self._of_text(tokenizer.decode(document[:-1]))

    def _may_begin(self, text: str) -> bool:
        window = _WINDOW
        head = normalised(text[:window])
        while len(head) < END + _SPARE and window < len(text):
            window *= 4
            head = normalised(text[:window])
        return head[:END] in self._heads

    def _may_end(self, text: str) -> bool:
        window = _WINDOW
        tail = normalised(text[-window:])
        while len(tail) < END + _SPARE and window < len(text):
            window *= 4
            tail = normalised(text[-window:])
        return tail[-END:] in self._tails

    def _of_text(self, text: str) -> Copy | None:
        if not self._may_end(text):
            return None
        exact, near = hashes_of(text)
        if near not in self._near:
            return None
        return Copy("held_out" if exact in self._exact else "held_out_near", exact, near)


def hashes_of(text: str) -> tuple[bytes, bytes]:
    """The hash of a text, and of the text normalised."""
    return _digest(text), _digest(normalised(text))


def _digest(text: str) -> bytes:
    return xxhash.xxh3_128_digest(text.encode(errors="surrogatepass"))
