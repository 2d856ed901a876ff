"""The fixed parts' options beside the MLP's: positions and the head, against Hugging Face's classes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from model import GPT, GPTConfig, flops_per_token, from_hf, to_hf
from model.designs import REGISTERED
from model.errors import UserError
from model.layers import CausalSelfAttention, rotated
from model.sphere import unit
from tests.model.random_models import our_gpt, with_random_weights
from tests.model.wholeness import assert_every_parameter_learns_and_no_forward_leaks
from tests.tiny import THREE_LAYERS, TINIEST

ALL: dict[str, Any] = {
    "mlp": "swiglu",
    "positions": "rotary",
    "qk_norm": "head",
    "tied": False,
    "z_loss": 1e-3,
    "logit_softcap": 5.0,
}
OWN_ATTENTION = """
import torch.nn as nn
class Attention({parent}):
    def {method}(self, *x):
        return super().{method}(*x)
class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn = Attention(*(config.n_embd, 8) if issubclass(Attention, nn.Linear) else (config,))
    def forward(self, x):
        return x + self.attn(x)
"""


def test_the_defaults_are_what_gpt2_was_before_there_were_options() -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**TINIEST))
    idx = torch.randint(TINIEST["vocab_size"], (2, 9))
    _, loss = gpt(idx[:, :-1], idx[:, 1:])
    loss.backward()
    norm = sum(p.grad.double().square().sum() for p in gpt.parameters()).sqrt()
    # Written down before the options were there.
    assert loss.item() == pytest.approx(3.4452176094055176, abs=1e-6)
    assert norm.item() == pytest.approx(2.116203897269424, abs=1e-5)
    assert gpt.config.size == "2L 2H 16d"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_rotary_attention_is_that_of_llama_and_after_the_norm_of_qwen3(family: str) -> None:
    torch.manual_seed(0)
    C, T = 32, 12
    shape = {"hidden_size": C, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    if family == "llama":
        config = LlamaConfig(**shape, attn_implementation="eager")
        theirs = with_random_weights(LlamaAttention(config, 0))
    else:
        config = Qwen3Config(**shape, attn_implementation="eager", rms_norm_eps=1e-5)
        theirs = with_random_weights(Qwen3Attention(config, 0))
    qk_norm = "head" if family == "qwen3" else "none"
    ours = CausalSelfAttention(GPTConfig(n_embd=C, n_head=4, bias=False, positions="rotary", qk_norm=qk_norm))
    with torch.no_grad():
        parts = [theirs.q_proj.weight, theirs.k_proj.weight, theirs.v_proj.weight]
        ours.c_attn.weight.copy_(torch.cat(parts))
        ours.c_proj.weight.copy_(theirs.o_proj.weight)
        if family == "qwen3":
            ours.q_norm.weight.copy_(theirs.q_norm.weight)
            ours.k_norm.weight.copy_(theirs.k_norm.weight)
    x = torch.randn(2, T, C)
    positions = LlamaRotaryEmbedding(LlamaConfig(**shape))(x, torch.arange(T)[None])
    mask = torch.full((T, T), -math.inf).triu(1)[None, None]
    expected, _ = theirs(x, position_embeddings=positions, attention_mask=mask)
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


def test_scores_of_rotated_heads_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 8).double()
    scores = rotated(q.expand(40, 8)) @ rotated(k.expand(40, 8)).T
    for distance in (0, 1, 17):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))
    assert abs(scores[5, 5] - scores[5, 4]) > 1e-3


def test_rotary_angles_are_not_rounded_in_a_bf16_model() -> None:
    x = torch.randn(1, 1, 500, 8)
    ours, exact = rotated(x.bfloat16()), rotated(x.bfloat16().double())
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, exact.bfloat16()) or (ours - exact).abs().max() < 2**-6


@pytest.mark.parametrize("block", REGISTERED["block"])
def test_every_block_takes_rotary_positions_and_an_untied_head(block: str) -> None:
    torch.manual_seed(0)
    topology = "sphere" if block == "ngpt" else "chain"
    gpt = GPT(GPTConfig(**TINIEST, block=block, topology=topology, positions="rotary", tied=False))
    assert "wpe" not in gpt.transformer
    assert_every_parameter_learns_and_no_forward_leaks(gpt)


@pytest.mark.parametrize("block", [block for block in REGISTERED["block"] if block != "canon"])
def test_every_block_sees_the_order_of_tokens_by_rotation_alone(block: str) -> None:
    """One layer without positions gives the last token the same, however those before it are ordered.

    Canon layers tell the order by themselves.
    """
    topology = "sphere" if block == "ngpt" else "chain"
    gpt = our_gpt(**TINIEST | {"n_layer": 1}, block=block, topology=topology, positions="rotary").double()
    gpt.set_training_step(10**7)  # all branches are open
    idx = torch.randperm(32)[None, :8]

    def effect() -> float:
        swapped = idx[:, [1, 0, *range(2, 8)]]
        return (gpt(idx)[0][:, -1] - gpt(swapped)[0][:, -1]).abs().max().item()

    assert effect() > 1e-7
    gpt.blocks[0].attn.rotary = False
    assert effect() < 1e-12


def test_hybridnorms_heads_are_normed_before_they_are_turned() -> None:
    config: Any = {**TINIEST, "block": "hybridnorm", "norm": "layernorm"}
    turned, still = our_gpt(**config, positions="rotary"), our_gpt(**config)
    x = torch.randn(1, 8, 16)
    still.blocks[0].load_state_dict(turned.blocks[0].state_dict())
    q, k, v = still.blocks[0].attn.qkv(x)
    for left, right in zip(turned.blocks[0].attn.qkv(x), (rotated(q), rotated(k), v), strict=True):
        torch.testing.assert_close(left, right)


def test_an_untied_gpt2_comes_from_hugging_face_and_goes_back(tmp_path: Path) -> None:
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 24, "vocab_size": 64}
    torch.manual_seed(0)
    theirs = with_random_weights(GPT2LMHeadModel(GPT2Config(**shape, tie_word_embeddings=False)))
    ours, idx = from_hf(theirs).eval(), torch.randint(0, 64, (1, 20))
    assert not ours.config.tied
    torch.testing.assert_close(ours(idx)[0], theirs(idx).logits, atol=1e-5, rtol=1e-5)
    back, loading = GPT2LMHeadModel.from_pretrained(to_hf(ours, tmp_path), output_loading_info=True)
    assert not any(loading.values()) and not back.config.tie_word_embeddings
    torch.testing.assert_close(back.eval()(idx).logits, theirs(idx).logits)
    assert torch.equal(from_hf(tmp_path).eval()(idx)[0], ours(idx)[0])
    theirs.config.tie_word_embeddings = True
    with pytest.raises(UserError, match="its head is not tied to its embedding, though"):
        from_hf(theirs)


def test_an_untied_head_has_its_own_weights_and_a_tied_ones_flops() -> None:
    torch.manual_seed(0)
    shape: Any = {**TINIEST, "vocab_size": 4000, "n_embd": 64}
    gpt, tied = GPT(GPTConfig(**shape, tied=False)), GPT(GPTConfig(**shape))
    head, embedding = gpt.lm_head.weight, gpt.transformer.wte.weight
    assert head is not embedding and not torch.equal(head, embedding)
    assert head.std().item() == pytest.approx(0.02, rel=0.01) == embedding.std().item()
    assert gpt.num_parameters() == tied.num_parameters() + head.numel()
    assert flops_per_token(gpt) == flops_per_token(tied)


def test_an_untied_ngpt_has_two_matrices_of_unit_rows() -> None:
    gpt = GPT(GPTConfig(**TINIEST, block="ngpt", topology="sphere", tied=False))
    for weight in (gpt.lm_head.weight, gpt.transformer.wte.weight):
        torch.testing.assert_close(weight, unit(weight))
        assert weight._no_weight_decay
    assert gpt.lm_head.weight is not gpt.transformer.wte.weight


@pytest.mark.parametrize(
    "options", [{name: value} for name, value in ALL.items()] + [ALL], ids=[*ALL, "all of them"]
)
def test_exported_logits_are_the_models_with_every_option(options: dict[str, Any], tmp_path: Path) -> None:
    ours, idx = our_gpt(**options), torch.randint(0, THREE_LAYERS["vocab_size"], (2, 20))
    folder = to_hf(ours, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    torch.testing.assert_close(theirs(idx).logits, ours(idx)[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(from_hf(folder).eval()(idx)[0], ours(idx)[0])
    if options == ALL:
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), idx], dim=1)
        mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(idx)], dim=1)
        logits = theirs(padded, attention_mask=mask).logits[:, 3:]
        torch.testing.assert_close(logits, ours(idx)[0], atol=1e-5, rtol=1e-5)
        assert from_hf(folder).config == ours.config
        assert ours.config.size == "3L 4H 64d swiglu rotary untied z_loss=0.001 logit_softcap=5"


def test_rotary_positions_need_attention_that_turns_queries_and_keys(tmp_path: Path) -> None:
    file = tmp_path / "candidate.py"
    config = GPTConfig(**TINIEST, block=f"{file}:Block", positions="rotary")
    file.write_text(OWN_ATTENTION.format(parent="CausalSelfAttention", method="mix"))
    assert GPT(config)(torch.zeros(1, 8, dtype=torch.long))[0].isfinite().all()
    linear = "nn.Linear", "forward"
    for parent, method in (("CausalSelfAttention", "qkv"), ("CausalSelfAttention", "forward"), linear):
        file.write_text(OWN_ATTENTION.format(parent=parent, method=method))
        with pytest.raises(UserError, match=r"rotary, but block 0 .* would know no positions$"):
            GPT(config)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"positions": "rotary", "n_head": 16}, r"model\.n_embd / model\.n_head is 1, and must be even$"),
        ({"z_loss": -1e-4}, r"model\.z_loss is -0\.0001, but it must be a number of at least 0$"),
        ({"logit_softcap": math.inf}, r"model\.logit_softcap is inf, but it must be a number of at least 0$"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        GPTConfig(**TINIEST | changes)
