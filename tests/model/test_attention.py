"""Gated attention against x-transformers, exclusive attention against its formula, and what they start as."""

from typing import Any

import pytest
import torch
from torch import nn
from x_transformers.x_transformers import Attention

from model import GPT, BlockConfig, GPTConfig
from model.attention import ATTENTION_BLOCKS
from model.norms import LayerNorm
from tests.model.documents import DOCUMENTS, gpt_of, tokens
from tests.model.wholeness import assert_every_parameter_learns_and_no_forward_leaks
from tests.tiny import TINY

B, T, C, H = 2, 10, 32, 4
SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": H, "n_embd": C, "block_size": T, "vocab_size": 64}
DESIGNS: dict[str, dict[str, Any]] = {
    "exclusive": {"block": "exclusive"},
    "head": {"block": "gated_attention"},
    "element": {"block": "gated_attention", "block_options": {"granularity": "element"}},
    "open": {"block": "gated_attention", "block_options": {"start": "open"}},
}
THEIRS: dict[str, dict[str, bool]] = {
    "head": {"gate_values": True, "gate_values_headwise": True},
    "element": {"gate_values": True},
}


def attention_of(name: str, **options: str) -> nn.Module:
    torch.manual_seed(0)
    shape = {**SHAPE, "dropout": 0.0, "bias": False, "qk_norm": "none", "layer_idx": 0}
    attention = ATTENTION_BLOCKS[name](BlockConfig(**shape, norm=LayerNorm), **options).attn
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    return attention


def oracle(ours: nn.Module, name: str) -> nn.Module:
    theirs = Attention(C, dim_head=C // H, heads=H, causal=True, **THEIRS[name]).eval()
    gate = next(module for module in theirs.to_v_gate.modules() if isinstance(module, nn.Linear))
    projections = [theirs.to_q, theirs.to_k, theirs.to_v, theirs.to_out, gate]
    weights = [*ours.c_attn.weight.chunk(3), ours.c_proj.weight, ours.gate.weight]
    with torch.no_grad():
        for projection, weight in zip(projections, weights, strict=True):
            projection.weight.copy_(weight)
    return theirs


@pytest.mark.parametrize("name", THEIRS)
def test_gates_equal_x_transformers(name: str) -> None:
    design = DESIGNS[name]
    ours = attention_of(design["block"], **design.get("block_options", {}))
    x = torch.randn(B, T, C)
    torch.testing.assert_close(ours(x), oracle(ours, name)(x), atol=1e-5, rtol=1e-5)


def test_exclusive_attention_equals_its_fp64_formula() -> None:
    ours = attention_of("exclusive")
    x = torch.randn(B, T, C)
    qkv = (x.double() @ ours.c_attn.weight.double().T).view(B, T, 3, H, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    future = torch.ones(T, T).triu(1).bool()
    y = (q @ k.transpose(2, 3) / (C // H) ** 0.5).masked_fill(future, -torch.inf).softmax(-1) @ v
    z = y - (y * v).sum(-1, keepdim=True) / (v * v).sum(-1, keepdim=True) * v
    expected = z.transpose(1, 2).flatten(2) @ ours.c_proj.weight.double().T
    torch.testing.assert_close(ours(x).double(), expected, atol=1e-5, rtol=1e-5)
    bf16 = ours.bfloat16()(x.bfloat16())
    assert bf16.dtype == torch.bfloat16
    torch.testing.assert_close(bf16.double(), expected, atol=0.1, rtol=0.05)


def test_exclusive_output_is_orthogonal_to_the_tokens_own_value() -> None:
    attention = attention_of("exclusive").double()
    q, k, v = attention.qkv(torch.randn(B, T, C, dtype=torch.double))
    y = attention.mix(q, k, v).unflatten(2, (H, -1)).transpose(1, 2)
    assert (y * v).sum(-1).abs().max() < 1e-12
    assert y[:, :, 0].abs().max() < 1e-12 < y[:, :, 1:].norm(dim=-1).min()  # the first token sees itself


def test_exclusive_attention_bears_a_value_of_0() -> None:
    attention = attention_of("exclusive")
    nn.init.zeros_(attention.c_attn.weight)
    x = torch.randn(B, T, C, requires_grad=True)
    attention(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_open_gates_start_as_gpt2_and_are_twice_a_sigmoid() -> None:
    torch.manual_seed(0)
    gated = GPT(GPTConfig(**TINY, **DESIGNS["open"]))
    plain = GPT(GPTConfig(**TINY))
    plain.load_state_dict({n: v for n, v in gated.state_dict().items() if not n.endswith("gate.weight")})
    idx = torch.randint(0, 64, (2, 16))
    assert torch.equal(gated(idx)[0], plain(idx)[0])
    half, twice = attention_of("gated_attention"), attention_of("gated_attention", start="open")
    x = torch.randn(B, T, C)
    torch.testing.assert_close(twice(x), 2 * half(x))


def test_the_papers_gates_start_near_a_half() -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**TINY, **DESIGNS["element"]))
    gates = torch.sigmoid(gpt.blocks[0].attn.gate(torch.randn(2, 8, 32)))
    assert gates.std() > 1e-3 and (gates - 0.5).abs().max() < 0.15


@pytest.mark.parametrize("name", DESIGNS)
def test_models_of_them_are_whole_and_keep_documents_apart(name: str) -> None:
    assert_every_parameter_learns_and_no_forward_leaks(GPT(GPTConfig(**TINY, **DESIGNS[name])))
    gpt, idx = gpt_of(**DESIGNS[name]), tokens()
    gpt.check_document_mask()
    hidden = gpt.hidden(idx, DOCUMENTS)
    inside = DOCUMENTS[:, -1:].eq(DOCUMENTS)
    others = torch.where(inside, idx, (idx + 1) % 64)
    torch.testing.assert_close(gpt.hidden(others, DOCUMENTS)[inside], hidden[inside], atol=0, rtol=0)
