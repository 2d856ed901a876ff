"""The GPT against its own description; against Hugging Face's in test_huggingface.py."""

import math

import pytest
import torch

from model import GPT, PRESETS, GPTConfig
from model.errors import UserError
from tests.tiny import THREE_LAYERS


def test_a_position_sees_no_later_one() -> None:
    for norm, block in (("layernorm", "pre"), ("rmsnorm", "post"), ("rmsnorm", "parallel")):
        gpt = GPT(GPTConfig(**THREE_LAYERS, norm=norm, block=block)).eval()
        idx = torch.randint(0, 512, (1, 30))
        changed = idx.clone()
        changed[0, 20:] = (changed[0, 20:] + 1) % 512
        assert torch.equal(gpt(idx)[0][:, :20], gpt(changed)[0][:, :20])
        assert not torch.equal(gpt(idx)[0][:, 20:], gpt(changed)[0][:, 20:])


def test_presets_have_gpt2s_parameter_counts() -> None:
    published = {"gpt2_small": 124_439_808, "gpt2_medium": 354_823_168, "gpt2_large": 774_030_080,
                 "gpt2_xl": 1_557_611_200}  # fmt: skip
    for name, count in published.items():
        with torch.device("meta"):
            assert GPT(GPTConfig(**PRESETS[name], vocab_size=50257)).num_parameters() == count


def test_initialisation_is_gpt2s() -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(n_layer=8, n_head=4, n_embd=256, block_size=64, vocab_size=1024))
    mlp = gpt.transformer.h[0].mlp
    assert mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert mlp.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.02)
    assert mlp.c_fc.bias.abs().max() == 0
    assert gpt.lm_head.weight is gpt.transformer.wte.weight
    _, loss = gpt(torch.randint(0, 1024, (4, 64)), torch.randint(0, 1024, (4, 64)))
    assert loss.item() == pytest.approx(math.log(1024), abs=0.1)


def test_variants_start_from_the_same_weights() -> None:
    torch.manual_seed(3)
    vanilla = GPT(GPTConfig(**THREE_LAYERS)).state_dict()
    torch.manual_seed(3)
    rmsnorm = GPT(GPTConfig(**THREE_LAYERS, norm="rmsnorm", block="parallel")).state_dict()
    shared = [name for name in rmsnorm if not name.endswith(("ln_1.bias", "ln_2.bias", "ln_f.bias"))]
    assert len(shared) == len(rmsnorm)
    assert all(torch.equal(vanilla[name], rmsnorm[name]) for name in shared)


def test_unreduced_losses_average_to_the_loss_and_skip_ignored_targets() -> None:
    gpt = GPT(GPTConfig(**THREE_LAYERS))
    idx, targets = torch.randint(0, 512, (2, 16)), torch.randint(0, 512, (2, 16))
    targets[1, 8:] = -1
    _, mean = gpt(idx, targets)
    _, losses = gpt(idx, targets, reduction="none")
    assert losses.shape == (2, 16) and losses[1, 8:].abs().max() == 0
    torch.testing.assert_close(losses.sum() / 24, mean)


@pytest.mark.usefixtures("bf16_products")
def test_loss_of_a_bf16_model_is_fp32() -> None:
    gpt = GPT(GPTConfig(**THREE_LAYERS)).bfloat16()
    _, loss = gpt(torch.randint(0, 512, (1, 8)), torch.randint(0, 512, (1, 8)))
    assert loss.dtype == torch.float32


def test_a_sequence_longer_than_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match=r"49 tokens is longer than model\.block_size 48"):
        GPT(GPTConfig(**THREE_LAYERS))(torch.zeros(1, 49, dtype=torch.long))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [("n_layer", 0, "model.n_layer is 0"), ("n_head", 5, "model.n_head 5 does not divide"),
     ("dropout", 1.0, "model.dropout is 1.0")],
)  # fmt: skip
def test_impossible_shapes_are_refused(field: str, value: float, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        GPTConfig(**{**THREE_LAYERS, field: value})
