"""Validation losses: bits per byte against independent computations, and the file of losses by document."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from data import ValidationSet, open_tokenizer
from model import GPT, GPTConfig
from model.files import write_whole
from training.validation import bits_per_byte, token_losses, write_document_losses

TEXTS = ["Water is patient.", "naïve café, 東京", "A town which forgets this is rebuilt by others. " * 5]


def validation_set(name: str) -> ValidationSet:
    tokenizer = open_tokenizer(name)
    tokens = [tokenizer.encode_document(text) for text in TEXTS]
    return ValidationSet(
        tokens=np.concatenate([[tokenizer.eot], *tokens]),
        document=np.repeat(np.arange(len(tokens), dtype=np.int32), [len(document) for document in tokens]),
        bytes=np.array([len(text.encode()) for text in TEXTS]),
        text_fingerprint="",
    )


def losses_of(gpt: GPT, validation: ValidationSet) -> np.ndarray:
    return token_losses(gpt, validation, block_size=16, batch=4, device=torch.device("cpu"))


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_a_model_that_knows_nothing_pays_for_every_token_and_every_end(name):
    vocab_size = open_tokenizer(name).vocab_size
    gpt = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=16, vocab_size=vocab_size))
    torch.nn.init.zeros_(gpt.lm_head.weight)
    validation = validation_set(name)
    symbols = sum(len(open_tokenizer(name).encode(text)) + 1 for text in TEXTS)
    expected = math.log2(vocab_size) * symbols / sum(len(text.encode()) for text in TEXTS)
    assert bits_per_byte(losses_of(gpt, validation), validation) == pytest.approx(expected, rel=1e-6)


def test_bits_per_byte_are_the_files_sums(tmp_path):
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=16, vocab_size=257))
    validation = validation_set("bytes")
    losses = losses_of(gpt, validation)
    file = tmp_path / "eval" / "step_00000001" / "validation.parquet"
    write_document_losses(file, losses, validation)
    table = pd.read_parquet(file)
    assert list(table.columns) == ["document", "tokens", "bytes", "loss"]
    assert table["bytes"].tolist() == [len(text.encode()) for text in TEXTS]
    assert table["tokens"].tolist() == [len(text.encode()) + 1 for text in TEXTS]
    in_bits = table["loss"].sum() / math.log(2) / table["bytes"].sum()
    assert bits_per_byte(losses, validation) == pytest.approx(in_bits, rel=1e-12)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "results.json"
    write_whole(file, lambda path: path.write_text("old"))

    def fail(path):
        path.write_text("ne")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_whole(file, fail)
    assert file.read_text() == "old"
