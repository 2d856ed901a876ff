"""Which documents, given as tokens, may begin like one of some texts: found without decoding them.

Token documents are read a hundred times as fast as text is tokenised, so that a look at each would be most of
the work. Here the first tokens of all documents of a shard are looked at together.
"""

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from ..tokenizer import Tokenizer

FIRST_TOKENS = 6
SHORTEST, LONGEST = 8, 48
"""So many letters and digits the first tokens have; with fewer or more nothing can be said of them."""
_BASE, _CODE = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03  # odd, as all that multiplies modulo 2**64 should be
_MODULUS = 2**64
_FACTORS = np.array([pow(_BASE, length, _MODULUS) for length in range(LONGEST + 1)], np.uint64)


class Beginnings:
    """The beginnings of some texts, by hashes of their letters and digits in their plainest form (NFKD).

    Those are the same in near copies, however spaces, quotes and dashes are written and cut into tokens.
    """

    def __init__(self, letters: Iterable[str], tokenizer: Tokenizer) -> None:
        """Of each text the letters and digits that `first_letters` gives."""
        hashes = {hash_ for of_text in letters for hash_ in _hashes(of_text)}
        self._hashes = np.array(sorted(hashes | {_MODULUS - 1}), np.uint64)  # the last stands behind all
        self._tokenizer = tokenizer
        # of each token, filled in when it is first seen
        self._is_known = np.zeros(tokenizer.vocab_size, bool)
        self._hash = np.zeros(tokenizer.vocab_size, np.uint64)
        self._length = np.zeros(tokenizer.vocab_size, np.int64)

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
        is_known = self._is_known[first]
        if not is_known.all():
            for token in np.unique(first[~is_known]).tolist():
                self._learn(token)
        ends = self._length[first].cumsum(axis=1)
        lengths = ends[:, -1]
        # the hash of the whole from those of its tokens, by how much stands behind each
        behind = np.minimum(lengths[:, None] - ends, LONGEST)
        hashes = (self._hash[first] * _FACTORS[behind]).sum(axis=1)
        may = self._hashes[np.searchsorted(self._hashes, hashes)] == hashes
        may |= (lengths < SHORTEST) | (lengths > LONGEST)
        return np.flatnonzero(may).tolist()

    def _learn(self, token: int) -> None:
        self._is_known[token] = True
        text = self._tokenizer.decode_bytes(np.array([token], self._tokenizer.dtype))
        # U+2000 to U+203F are punctuation; what ends a character follows what begins it
        text = text.lstrip(bytes(range(0x80, 0xC0))).removesuffix(b"\xe2\x80")
        try:
            whole = text.decode()
        except UnicodeDecodeError:
            whole = "\ufffd"
        if "\ufffd" in whole:  # it may have a part of a letter
            self._length[token] = LONGEST + 1
            return
        letters = _letters_and_digits(whole)
        self._length[token] = len(letters)
        self._hash[token] = _hashes(letters)[-1] if letters else 0


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


def _hashes(text: str) -> list[int]:
    """Of each beginning of a text, by its length."""
    hashes, last = [], 0
    for character in text:
        last = (last * _BASE + (ord(character) + 1) * _CODE) % _MODULUS
        hashes.append(last)
    return hashes
