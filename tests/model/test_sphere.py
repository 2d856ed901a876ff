"""nGPT against its paper's equations, written here with weights that are normalised beforehand."""

import math

import pytest
import torch

from model import GPT, GPTConfig
from model.errors import UserError
from model.loss import Head
from tests.model.wholeness import assert_every_parameter_learns_and_no_forward_leaks
from tests.tiny import TINIEST
from training.engine.build import parameter_groups


def gpt_of(**options) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**TINIEST, **options}, block="ngpt", topology="sphere"))


def randomised() -> GPT:
    gpt = gpt_of().double()
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return gpt


def length_1(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    return x / x.square().sum(dim, keepdim=True).sqrt()


def paper_logits(gpt: GPT, idx: torch.Tensor) -> torch.Tensor:
    """The paper's forward: matrices first, equations (1) to (15) after, with GPT-2's GELU and positions."""
    C, heads = TINIEST["n_embd"], TINIEST["n_head"]
    root = math.sqrt(C)
    E = gpt.transformer["wte"].weight
    h = length_1(E[idx] + gpt.transformer["wpe"].weight[: idx.shape[1]])
    for block in gpt.blocks:
        W_q, W_k, W_v = length_1(block.attn.c_attn.weight, 1).chunk(3)
        W_o = length_1(block.attn.c_proj.weight, 0)
        W_u = length_1(block.mlp.c_fc.weight, 1)
        W_down = length_1(block.mlp.c_proj.weight, 0)
        s_qk = root * block.attn.qk_scale.weight.view(heads, C // heads)
        alpha_A = (0.05 * root * block.step_1.weight).abs()
        alpha_M = (0.05 * root * block.step_2.weight).abs()

        mixed = []
        for head, rows in enumerate(torch.arange(C).chunk(heads)):
            q = s_qk[head] * length_1(h @ W_q[rows].T)
            k = s_qk[head] * length_1(h @ W_k[rows].T)
            scores = math.sqrt(C // heads) * q @ k.transpose(1, 2)
            future = torch.ones_like(scores).triu(1).bool()
            mixed.append(scores.masked_fill(future, -math.inf).softmax(-1) @ (h @ W_v[rows].T))
        h_A = length_1(torch.cat(mixed, dim=-1) @ W_o.T)
        h = length_1(h + alpha_A * (h_A - h))

        u = (h @ W_u.T) * block.mlp.hidden_scale * root
        gelu = u / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        h = length_1(h + alpha_M * (length_1(gelu @ W_down.T) - h))
    s_z = 2 * root * gpt.transformer["topology"].logit_scale.weight
    return s_z * (h @ length_1(E).T)


def test_ngpt_equals_the_papers_equations() -> None:
    gpt = randomised()
    idx = torch.randint(0, 32, (3, 8))
    torch.testing.assert_close(gpt(idx)[0], paper_logits(gpt, idx), atol=1e-9, rtol=1e-9)


def test_the_head_alone_has_rows_of_length_1() -> None:
    """Evaluation calls `lm_head` on some positions of `hidden`."""
    gpt = randomised()
    idx = torch.randint(0, 32, (2, 8))
    hidden = gpt.hidden(idx)
    assert torch.equal(gpt.lm_head(hidden), gpt(idx)[0])
    s_z = gpt.transformer["topology"].logit_scale().abs()
    torch.testing.assert_close(hidden.norm(dim=-1), s_z.expand(2, 8))
    assert (gpt(idx)[0].abs() <= s_z + 1e-9).all()
    assert gpt.lm_head.weight is gpt.transformer["wte"].weight
    assert type(GPT(GPTConfig(**TINIEST)).lm_head) is Head


def test_every_block_returns_length_1() -> None:
    gpt = gpt_of()
    x = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
    for block in gpt.blocks:
        x = block(x)
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(2, 8))


def test_stored_lengths_of_the_matrices_change_nothing() -> None:
    gpt = randomised()
    idx = torch.randint(0, 32, (2, 8))
    before = gpt(idx)[0]
    with torch.no_grad():
        for block in gpt.blocks:
            for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                layer.weight.mul_(torch.rand(()) + 0.5)
    torch.testing.assert_close(gpt(idx)[0], before)


def test_starts_at_the_papers_values_without_biases_or_norms() -> None:
    gpt = gpt_of()
    assert [n for n, _ in gpt.named_parameters() if n.endswith("bias") or "ln_" in n] == []
    for block in gpt.blocks:
        for scale, value in ((block.step_1, 0.05), (block.step_2, 0.05), (block.attn.qk_scale, 1.0)):
            torch.testing.assert_close(scale(), torch.full_like(scale.weight, value))
            torch.testing.assert_close(scale.weight, torch.full_like(scale.weight, 0.25))  # 1 / sqrt(16)
        assert (block.mlp.hidden_scale == 1).all()
        for layer, dim in ((block.attn.c_attn, 1), (block.attn.c_proj, 0), (block.mlp.c_proj, 0)):
            lengths = layer.weight.norm(dim=dim)
            torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert gpt.transformer["topology"].logit_scale().item() == pytest.approx(2)
    assert gpt_of(topology_options={"init": 1.0}).transformer[
        "topology"
    ].logit_scale().item() == pytest.approx(1)


def test_only_positions_are_decayed() -> None:
    gpt = gpt_of()
    names = {id(p): n for n, p in gpt.named_parameters()}
    groups = parameter_groups(gpt, 0.1)
    assert {g["lr_mult"] for g in groups} == {1.0}
    decayed = [names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]]
    assert decayed == ["transformer.wpe.weight"]


def test_its_own_query_norm_excludes_the_configs() -> None:
    with pytest.raises(UserError, match=r"set model\.qk_norm none, not head"):
        gpt_of(qk_norm="head")


def test_every_parameter_has_a_gradient_and_no_forward_leaks_into_the_next() -> None:
    gpt = gpt_of()
    assert_every_parameter_learns_and_no_forward_leaks(gpt)


def test_documents_are_kept_apart() -> None:
    gpt = gpt_of()
    idx = torch.randint(0, 32, (1, 8))
    documents = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
    changed = idx.clone()
    changed[0, :5] = (changed[0, :5] + 1) % 32
    before, after = (gpt(ids, documents=documents)[0][0, 5:] for ids in (idx, changed))
    assert torch.equal(before, after)


def test_compiled_as_one_graph_equals_eager() -> None:
    torch.compiler.reset()
    gpt = gpt_of(n_layer=1)
    idx = torch.randint(0, 32, (2, 8))
    compiled = torch.compile(gpt, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(idx)[0], gpt(idx)[0], atol=1e-5, rtol=1e-5)


def test_bf16_runs_near_fp32() -> None:
    gpt = gpt_of()
    idx = torch.randint(0, 32, (2, 8))
    expected = gpt(idx)[0]
    result = gpt.bfloat16()(idx)[0]
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, atol=0.05, rtol=0.05)
