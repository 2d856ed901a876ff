"""Which documents, given as tokens, may begin like one of some texts: found without decoding them.

Token documents are read a hundred times as fast as text is tokenised, so that a look at each would be most of
the work. Here the first tokens of all documents of a shard are looked at together.
"""

import functools
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np
import xxhash

from ..tokenizer import Tokenizer

FIRST_TOKENS = 6
SHORTEST, LONGEST = 8, 48
"""So many letters and digits the first tokens have; with fewer or more nothing can be said of them."""
# a sum counts its letters in its lowest bits; the rest are of their hashes
_LENGTH_BITS = 16
_LENGTH = np.uint64(2**_LENGTH_BITS - 1)
_LARGEST = 2**64 - 1
_UNSEEN = np.uint64(2**12)
"""Of a token that was not seen yet: a length that no tokens have together."""


class Beginnings:
    """The beginnings of some texts, by sums over their letters and digits in their plainest form (NFKD).

    Those are the same in near copies, however spaces, quotes and dashes are written and cut into tokens. A
    text with the same letters in another order has the same sum too, and is looked at for nothing.
    """

    def __init__(self, letters: Iterable[str], tokenizer: Tokenizer) -> None:
        """Of each text the letters and digits that `first_letters` gives."""
        sums = {sum_ for of_text in letters for sum_ in accumulate(map(_of_letter, of_text), _plus)}
        self._sums = np.array(sorted(sums | {_LARGEST}), np.uint64)  # the last stands behind all
        self._tokenizer = tokenizer
        self._of_token = np.full(tokenizer.vocab_size, _UNSEEN)  # the sum of its letters

    def candidates(self, documents: Sequence[np.ndarray]) -> list[int]:
        """Numbers of the documents, each with its `eot`, that may begin like one of the texts."""
        lengths = list(map(len, documents))
        if documents and min(lengths) > FIRST_TOKENS:
            return self._may_begin_like(_first_tokens(documents, lengths))
        longer = [number for number, length in enumerate(lengths) if length > FIRST_TOKENS]
        shorter = [number for number, length in enumerate(lengths) if length <= FIRST_TOKENS]
        first = [documents[number][:FIRST_TOKENS] for number in longer]
        found = self._may_begin_like(np.stack(first)) if longer else []
        return sorted([*shorter, *(longer[number] for number in found)])

    def _may_begin_like(self, first: np.ndarray) -> list[int]:
        sums = self._of_token[first].sum(axis=1)
        lengths = sums & _LENGTH
        if (lengths >= _UNSEEN).any():
            for token in np.unique(first[self._of_token[first] == _UNSEEN]).tolist():
                self._of_token[token] = self._sum_of(token)
            return self._may_begin_like(first)
        may = self._sums[np.searchsorted(self._sums, sums)] == sums
        may |= (lengths < SHORTEST) | (lengths > LONGEST)
        return np.flatnonzero(may).tolist()

    def _sum_of(self, token: int) -> int:
        text = self._tokenizer.decode_bytes(np.array([token], self._tokenizer.dtype))
        # U+2000 to U+203F are punctuation; what ends a character follows what begins it
        text = text.lstrip(bytes(range(0x80, 0xC0))).removesuffix(b"\xe2\x80")
        try:
            letters = _letters_and_digits(text.decode())
            has_part = "\ufffd" in text.decode()
        except UnicodeDecodeError:
            has_part = True
        if has_part or len(letters) > LONGEST:  # there may be a part of a letter
            return LONGEST + 1
        return functools.reduce(_plus, map(_of_letter, letters), 0)


def _first_tokens(documents: Sequence[np.ndarray], lengths: list[int]) -> np.ndarray:
    """(documents, FIRST_TOKENS), of each its first tokens; none is shorter."""
    first, last = documents[0], documents[-1]
    ends = np.cumsum(lengths)
    begins = ends - lengths
    if first.base is last.base is not None and first.strides == (first.itemsize,):
        apart = last.__array_interface__["data"][0] - first.__array_interface__["data"][0]
        # those of a shard stand one behind the other in memory, as in its file
        if apart == begins[-1] * first.itemsize:
            all_of_them = np.lib.stride_tricks.as_strided(first, (ends[-1],), writeable=False)
            return all_of_them[begins[:, None] + np.arange(FIRST_TOKENS)]
    return np.stack([document[:FIRST_TOKENS] for document in documents])


def first_letters(text: str) -> str:
    """The first `LONGEST` letters and digits of a text."""
    window = 4 * LONGEST
    letters = _letters_and_digits(text[:window])
    while len(letters) < LONGEST and window < len(text):
        window *= 4
        letters = _letters_and_digits(text[:window])
    return letters[:LONGEST]


def _letters_and_digits(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text)))


def _of_letter(letter: str) -> int:
    """Its hash above the bits for a length of one."""
    return (xxhash.xxh3_64_intdigest(letter.encode()) << _LENGTH_BITS) % 2**64 + 1


def _plus(one: int, other: int) -> int:
    return (one + other) % 2**64
