"""Texts that tiktoken's regular expressions do not bear, in parts: the same tokens as of the whole."""

import random
import sys
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from data import gpt2_encoding, open_tokenizer
from data.tokenizer import ByteTokenizer, NotTokenizable, TiktokenTokenizer, Tokenizer, parts
from data.tokenizer.parts import encode_in_parts

# tiktoken's other patterns, which it has only beside vocabularies to download
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
    r"\s*[\r\n]|\s+(?!\S)|\s"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def of_pattern(pattern: str) -> TiktokenTokenizer:
    ranks = gpt2_encoding()._mergeable_ranks
    special = {"<|endoftext|>": 50256}
    return TiktokenTokenizer(
        "own", tiktoken.Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    )


TOKENIZERS = {name: of_pattern(pattern) for name, pattern in {"cl100k": CL100K, "o200k": O200K}.items()}
TOKENIZERS["gpt2"] = TiktokenTokenizer("gpt2", gpt2_encoding())
UNITS = [
    " ", "\n", "\t", "\r\n", "\u3000", "\x85", " \n", "\n ", " \t\n", "a", "Ab", "aB", "7", "123", "-", "=+",
    "/", "!", "漢", "かな", "é", "e\u0301", "\u0301", "😀", "👩\u200d🚀", "'s", "'LL", "'\u017f", "ʰ", "ǅ",
    "²", "٣", "Ⅷ", "\u200b", "\u0378", "\U0003134f", "\U000323b0", "\ua7d2", "\U0001173a", "word ",
    " word", "<|endoftext|>", "it's",
]  # fmt: skip
RUNS = st.lists(st.tuples(st.sampled_from(UNITS), st.sampled_from([1, 1, 2, 3, 7, 64, 501])), max_size=8)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(runs=RUNS)
@settings(max_examples=150, deadline=None)
def test_parts_give_the_tokens_of_the_whole(name: str, runs: list[tuple[str, int]]) -> None:
    tokenizer = TOKENIZERS[name]
    text = "".join(unit * count for unit, count in runs)
    assert encode_in_parts(tokenizer.encoding, text) == tokenizer.encoding.encode_ordinary(text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_long_runs_of_any_kind_are_the_same_in_parts(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    for unit in UNITS:
        run = unit * (5_000 // len(unit))
        for text in (run, f"before{run}after", f"so, {run} it was.", f"{run}\n", f"7{run}'s"):
            assert encode_in_parts(tokenizer.encoding, text) == tokenizer.encoding.encode_ordinary(text)


def test_a_part_in_windows_has_the_tokens_of_the_whole() -> None:
    letters = "".join(random.Random(0).choices("etaoinshrdlu", k=parts.LONG_PART))
    encode = gpt2_encoding()._encode_single_piece
    for unit in (*UNITS, letters):
        content = (f" {unit}" + unit * (2 * parts.LONG_PART // len(unit.encode()))).encode()
        assert parts.encode_part(gpt2_encoding(), content) == encode(content)


def some_vocabulary(seed: int) -> tiktoken.Encoding:
    """Tokens of a few letters, each of two before it; in half of them their ranks are in any order."""
    draw = random.Random(seed)
    alphabet = draw.choice([b"a", b"ab", b"abc", b"abcd"])
    tokens = [bytes([byte]) for byte in range(256)]
    made = [bytes([byte]) for byte in alphabet]
    for _ in range(draw.randint(5, 120)):
        token = draw.choice(made) + draw.choice(made)
        if len(token) <= 16 and token not in made:
            made.append(token)
    longer = made[len(alphabet) :]
    if seed % 2:
        draw.shuffle(longer)
    ranks = {token: rank for rank, token in enumerate(tokens + longer)}
    return tiktoken.Encoding("some", pat_str=r"(?s).+", mergeable_ranks=ranks, special_tokens={})


def test_windows_are_put_together_for_any_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LONG_PART": 8, "WINDOW": 40, "BACK": 2}.items():
        monkeypatch.setattr(parts, name, value)
    moved = 0
    are_neighbours = parts._are_neighbours

    def counted(*pair: Any) -> bool:
        nonlocal moved
        moved += not (found := are_neighbours(*pair))
        return found

    monkeypatch.setattr(parts, "_are_neighbours", counted)
    for seed in range(60):
        encoding, draw = some_vocabulary(seed), random.Random(seed)
        for _ in range(40):
            unit = bytes(draw.choices(b"abcd", k=draw.randint(1, 200)))
            part = unit * draw.randint(1, 60)
            assert parts.encode_part(encoding, part) == encoding._encode_single_piece(part)
    assert moved > 100, "borders had to be moved"


def test_a_long_run_is_seen_and_prose_is_not_searched_for_it() -> None:
    assert not parts.has_long_run("Prose, and more of it. " * 20_000)
    assert not parts.has_long_run("short")
    for unit in ("a", " ", "漢", "\n \t", "-", "ab1"):
        for before in (0, 1, 49_999, 60_001):
            text = "a b " * (before // 4) + unit * (2 * parts.LONG_RUN // len(unit)) + " c" * 40_000
            assert parts.has_long_run(text), unit


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_character_is_of_the_same_kind_in_parts(name: str) -> None:
    """Letters of scripts that one of the two libraries does not know yet too."""
    tokenizer = TOKENIZERS[name]
    points = [chr(point) for point in range(128, sys.maxunicode) if not 0xD800 <= point < 0xE000]
    text = "".join(f"a{one}B{one}{one} {one}1\n" for one in random.Random(0).sample(points, 60_000))
    assert encode_in_parts(tokenizer.encoding, text) == tokenizer.encoding.encode_ordinary(text)


def test_a_million_spaces_before_a_word_are_tokens() -> None:
    tokenizer = open_tokenizer("gpt2")
    count = 1_000_000
    with pytest.raises(ValueError, match="Max stack size exceeded"):
        gpt2_encoding().encode_to_numpy(" " * count + "end")
    # all but the last space are a part of their own, and no merge of GPT-2's is of spaces alone
    space, end = gpt2_encoding().encode_ordinary(" ") + gpt2_encoding().encode_ordinary(" end")
    assert tokenizer.encode(" " * count + "end").tolist() == [space] * (count - 1) + [end]
    tokens = tokenizer.encode("so it\n" + "\n" * count + "ends")
    assert tokens.dtype == np.uint16 and tokenizer.decode(tokens) == "so it\n" + "\n" * count + "ends"


class _Panic(BaseException):
    """As pyo3 raises it where Rust panics."""


_Panic.__name__ = "PanicException"


def failing(error: BaseException) -> Tokenizer:
    def fail(text: str) -> np.ndarray:
        raise error

    tokenizer = ByteTokenizer()
    tokenizer._encode = fail  # type: ignore[method-assign]
    return tokenizer


def test_whatever_a_tokenizer_raises_is_one_sentence() -> None:
    for error in (ValueError("no"), RuntimeError("no"), Exception("no"), _Panic("no")):
        with pytest.raises(
            NotTokenizable, match=r"^data\.tokenizer: bytes fails on the text of 3 char.*no\)$"
        ):
            failing(error).encode("abc")
    for error in (KeyboardInterrupt(), MemoryError()):
        with pytest.raises(type(error)):
            failing(error).encode("abc")
