"""The tokenizer that an export carries, as transformers loads it where NormLab is not installed."""

import random
from pathlib import Path

import pytest
import tiktoken
from tiktoken_ext import openai_public
from transformers import AutoTokenizer

from data import Tokenizer, gpt2_encoding, open_tokenizer
from data.tokenizer import TiktokenTokenizer
from eval.hf_tokenizer import read_tokenizer_of, write_tokenizer
from model import GPT, GPTConfig, to_hf
from model.errors import UserError

TEXTS = [
    "", " ", "\n\n\n", "  Tides turn <|endoftext|> twice <|fim_prefix|> a day; élan\n", "12345678 1234567",
    "don't DON'T we'LL it'\u017f", "a  \n b\r\n\r\n c\t\t\n  ", "日本語 текст عربى 🤷🏽‍♂️ ﷽",
    "\x00\x01\u200b\ufeff\u2028x",
    "x" * 300, " " * 77, "   \n   ", " ends  ", "cafe\u0301 ≠ café",
]  # fmt: skip
PARTS = [
    "a",
    "A",
    " ",
    "  ",
    "\n",
    "\r",
    "'s",
    "'S",
    "1",
    "23",
    ".",
    "!",
    "é",
    "日",
    "\u3000",
    "\xa0",
    "🤷",
    "the",
]
# cl100k_base's pattern, which tiktoken has only beside a vocabulary to download: possessive, with a "$".
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
    r"\s*[\r\n]|\s+(?!\S)|\s"
)


def of_pattern(pattern: str) -> TiktokenTokenizer:
    """A tokenizer with GPT-2's tokens, another pattern, and special tokens with a gap between."""
    special = {"<|endoftext|>": 50256, "<|fim_prefix|>": 50258}
    ranks = gpt2_encoding()._mergeable_ranks
    encoding = tiktoken.Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    return TiktokenTokenizer("own", encoding)


@pytest.mark.parametrize("kind", ["bytes", "gpt2", "r50k", "cl100k"])
def test_an_export_carries_a_tokenizer_with_the_same_ids(kind: str, tmp_path: Path) -> None:
    patterns = {"r50k": openai_public.r50k_pat_str, "cl100k": CL100K}
    ours: Tokenizer = of_pattern(patterns[kind]) if kind in patterns else open_tokenizer(kind)
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "vocab_size": ours.vocab_size}
    norm = "rmsnorm" if kind == "bytes" else "layernorm"  # beside code of its own, and beside GPT-2's config
    to_hf(GPT(GPTConfig(**shape, norm=norm)), tmp_path, ours.eot)
    write_tokenizer(ours, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    assert theirs.eos_token_id == ours.eot
    draw = random.Random(1)
    made = ["".join(draw.choices(PARTS, k=draw.randint(1, 40))) for _ in range(300)]
    for text in (*TEXTS, *made):
        ids = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids, repr(text)
        assert theirs.decode(ids) == text
    assert theirs.decode([ours.eot], skip_special_tokens=False) == "<|endoftext|>"
    again = read_tokenizer_of(tmp_path)
    assert again is not None and again.eot == ours.eot
    assert again.encode(TEXTS[3]).tolist() == ours.encode(TEXTS[3]).tolist()


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert read_tokenizer_of(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="has a tokenizer that cannot be read"):
        read_tokenizer_of(tmp_path)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
