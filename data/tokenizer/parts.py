"""What tiktoken gives of a text with runs that it is slow on or cannot bear: the same tokens, in parts.

tiktoken divides a text by a regular expression into parts (a word, a number, spaces) and merges the bytes of
each. A run of spaces or of letters is one part, however long. The expression fails on runs of about a million
characters (fancy-regex keeps a place to return to for each); merging takes 15 s for 19 million.
"""

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex
    import tiktoken

LONG_RUN = 50_000
"""Of so many characters without a change between space and other characters a text has a long run."""
LONG_PART = 2**16
"""A part of more bytes is encoded in windows."""
WINDOW, BACK = 2**14, 64
"""Bytes of a window, which no token reaches, and how many tokens at its end the next one encodes again."""
MOVES = 1000
"""So often a border between windows is moved to where they agree."""

# a character of each kind that tiktoken's patterns tell apart, as old as Unicode
_OF_KIND = {
    r"\p{Lu}": "À", r"\p{Ll}": "à", r"\p{Lt}": "ǅ", r"\p{Lm}": "ʰ", r"\p{Lo}": "ª", r"\p{M}": "\u0300",
    r"\p{N}": "²",
}  # fmt: skip
_OF_NO_KIND = "§"
_SPACE, _OTHER = re.compile(r"\s"), re.compile(r"\S")


def has_long_run(text: str) -> bool:
    """Whether a run of spaces, or of other characters, has `LONG_RUN`: surely said of twice as many."""
    return any(
        kind.search(text, start, start + LONG_RUN) is None
        for start in range(0, len(text) - LONG_RUN + 1, LONG_RUN)
        for kind in (_SPACE, _OTHER)
    )


def encode_in_parts(encoding: "tiktoken.Encoding", text: str) -> list[int]:
    """The tokens of a text, special tokens in it read as ordinary text."""
    known = text.translate(_known_characters(frozenset(text)))
    of_part: dict[str, list[int]] = {}
    tokens: list[int] = []
    for found in _pattern(encoding._pat_str).finditer(known):
        part = text[slice(*found.span())]
        if part not in of_part:
            of_part[part] = encode_part(encoding, part.encode())
        tokens += of_part[part]
    return tokens


def encode_part(encoding: "tiktoken.Encoding", part: bytes) -> list[int]:
    """The tokens of one part, a long one in windows.

    Tokens are those that merging gives if and only if each two neighbours are those that merging gives of the
    two (https://github.com/github/rust-gems/tree/main/crates/bpe). So windows that overlap are put together
    where they agree, and a border between two of them is tried.
    """
    encode = encoding._encode_single_piece
    if len(part) <= LONG_PART:
        return encode(part)
    tokens: list[int] = []
    start = moved = 0
    while True:
        window = encode(part[start : start + WINDOW])
        if tokens and not _are_neighbours(encoding, tokens[-1], window[0]):
            moved += 1
            if moved > MOVES:  # no text is known that needs it
                return encode(part)
            start -= len(encoding.decode_single_token_bytes(tokens.pop()))
            continue
        if start + WINDOW >= len(part):
            return tokens + window
        again = window[max(1, len(window) - BACK) :]
        tokens += window[: max(1, len(window) - BACK)]
        start += WINDOW - sum(len(encoding.decode_single_token_bytes(token)) for token in again)


def _are_neighbours(encoding: "tiktoken.Encoding", left: int, right: int) -> bool:
    pair = encoding.decode_single_token_bytes(left) + encoding.decode_single_token_bytes(right)
    return encoding._encode_single_piece(pair) == [left, right]


@cache
def _pattern(pattern: str) -> "regex.Pattern[str]":
    import regex  # which tiktoken needs; it bears runs of any length

    return regex.compile(pattern.replace("$", r"\Z"))  # here "$" also stands before a last line end


def _known_characters(characters: frozenset[str]) -> dict[int, str]:
    """For those whose kind tiktoken's version of Unicode and `regex`'s do not agree on, one that both know.

    A letter of a new script is none yet to the one that is older.
    """
    import regex
    import tiktoken

    kinds: list[dict[str, str]] = [{}, {}]
    new = sorted(character for character in characters if not character.isascii())
    for pattern, of_kind in _OF_KIND.items():
        bytes_of_kind = tiktoken.Encoding(
            name=pattern,
            pat_str=pattern,  # what it does not find is left out of the tokens
            mergeable_ranks={bytes([byte]): byte for byte in range(256)},
            special_tokens={},
        ).encode_ordinary("".join(new))
        kinds[0] |= dict.fromkeys(bytes(bytes_of_kind).decode(), of_kind)
        kinds[1] |= dict.fromkeys(regex.findall(pattern, "".join(new)), of_kind)
    return {
        ord(character): kinds[0].get(character, _OF_NO_KIND)
        for character in new
        if kinds[0].get(character) != kinds[1].get(character)
    }
