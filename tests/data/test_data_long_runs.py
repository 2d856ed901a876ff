"""Texts that tiktoken's regular expressions do not bear, in parts: the same tokens as of the whole."""

import random
import sys

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from data import gpt2_encoding, open_tokenizer
from data.tokenizer import ByteTokenizer, NotTokenizable, TiktokenTokenizer, Tokenizer

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
    assert tokenizer._encode_in_parts(text).tolist() == tokenizer.encoding.encode_ordinary(text)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("unit", UNITS)
def test_long_runs_of_any_kind_are_the_same_in_parts(name: str, unit: str) -> None:
    tokenizer = TOKENIZERS[name]
    run = unit * (30_000 // len(unit))
    for text in (run, f"before{run}after", f"so, {run} it was.", f"{run}\n", f"7{run}'s"):
        assert tokenizer._encode_in_parts(text).tolist() == tokenizer.encoding.encode_ordinary(text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_character_is_of_the_same_kind_in_parts(name: str) -> None:
    """Letters of scripts that one of the two libraries does not know yet too."""
    tokenizer = TOKENIZERS[name]
    points = [chr(point) for point in range(128, sys.maxunicode) if not 0xD800 <= point < 0xE000]
    text = "".join(f"a{one}B{one}{one} {one}1\n" for one in random.Random(0).sample(points, 60_000))
    assert tokenizer._encode_in_parts(text).tolist() == tokenizer.encoding.encode_ordinary(text)


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
