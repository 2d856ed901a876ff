"""Validation losses: bits per byte against independent computations, and the file of losses by document."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch._dynamo.utils import counters

from data import ValidationSet, open_tokenizer
from model import GPT, GPTConfig, loss
from model.files import write_whole
from training.engine.compilation import compile_blocks
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_models_batches_have_one_shape(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **given: compile_with(f, backend="aot_eager", **given))
    monkeypatch.setattr(loss, "_compiled", lambda function: torch.compile(function, dynamic=True))
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(n_layer=2, n_head=1, n_embd=8, block_size=16, vocab_size=257)).to(dtype)
    validation = validation_set("bytes")
    blocks = len(validation.blocks(16)[0])
    assert blocks % 4, "the last batch is not full"
    expected = losses_of(gpt, validation)
    compile_blocks(gpt, pytest.fail, (4, 16))
    counters.clear()
    shapes: list[tuple[int, ...]] = []
    gpt.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape)))
    found = token_losses(gpt, validation, 16, 4, torch.device("cpu"), full_batches=True)
    assert shapes == [(4, 16)] * -(-blocks // 4)
    np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == torch.float32 else 0.02)
    # the blocks', the final norm's and, where products are in bf16, the losses'
    bf16 = loss.dtype_of_products(torch.zeros(1, dtype=dtype)) == torch.bfloat16
    assert counters["stats"]["unique_graphs"] == (3 if bf16 else 2)
    token_losses(gpt, validation, 16, 3, torch.device("cpu"), full_batches=True)
    assert counters["stats"]["unique_graphs"] == (3 if bf16 else 2)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "results.json"
    write_whole(file, lambda path: path.write_text("old"))

    def fail(path):
        path.write_text("ne")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_whole(file, fail)
    assert file.read_text() == "old"
