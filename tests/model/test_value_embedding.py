"""Value embeddings, and the token ids that a block or topology gets by naming `state`."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import GPT, GPTConfig, document_mask, flops_per_token
from model.designs import REGISTERED
from model.errors import UserError
from tests.model.documents import DOCUMENTS, tokens
from tests.model.documents import gpt_of as gpt_of_documents
from tests.model.wholeness import assert_every_parameter_learns_and_no_forward_leaks
from tests.tiny import TINIEST
from training.engine.build import muon_groups, parameter_groups

OWN = """
import torch.nn as nn

class Topology(nn.Module):
    def __init__(self, config, blocks):
        super().__init__()
        self.blocks = blocks
        self.rows = nn.Embedding(config.vocab_size, config.n_embd)

    def forward(self, x{parameters}):
        {first}
        for block in self.blocks:
            x = block(x, state)
        return x
"""


def gpt_of(topology: str = "chain", n_layer: int = 3, **options) -> GPT:
    torch.manual_seed(0)
    shape = TINIEST | {"n_layer": n_layer}
    return GPT(GPTConfig(**shape, block="value_embedding", block_options=options, topology=topology))


def test_it_equals_its_formula() -> None:
    gpt = gpt_of().double()
    for parameter in gpt.parameters():
        nn.init.normal_(parameter, std=0.3)
    block = gpt.blocks[2]
    x, idx = torch.randn(2, 8, 16, dtype=torch.double), torch.randint(0, 32, (2, 8))
    attention = block.attn
    normed = F.layer_norm(x, (16,), block.ln_1.weight, block.ln_1.bias, 1e-5)
    q, k, v = F.linear(normed, attention.c_attn.weight, attention.c_attn.bias).split(16, dim=2)
    v = v + attention.value_scale * attention.value_embedding.weight[idx]
    q, k, v = (part.view(2, 8, 2, 8).transpose(1, 2) for part in (q, k, v))
    scores = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf)
    heads = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = x + F.linear(heads, attention.c_proj.weight, attention.c_proj.bias)
    expected = expected + block.mlp(block.ln_2(expected))
    torch.testing.assert_close(block(x, {"idx": idx}), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("n_layer", "every", "layers"), [(4, 2, {1, 3}), (5, 2, {0, 2, 4}), (3, 1, {0, 1, 2}), (4, 3, {0, 3})]
)
def test_the_last_layer_and_each_nth_before_it_embed(n_layer: int, every: int, layers: set[int]) -> None:
    gpt, vanilla = gpt_of(n_layer=n_layer, every=every), GPT(GPTConfig(**TINIEST | {"n_layer": n_layer}))
    assert {i for i, block in enumerate(gpt.blocks) if hasattr(block.attn, "value_embedding")} == layers
    assert gpt.num_parameters() == vanilla.num_parameters() + len(layers) * (32 * 16 + 1)
    assert flops_per_token(gpt) == flops_per_token(vanilla)  # a lookup multiplies nothing
    with pytest.raises(UserError, match="must be at least 1"):
        gpt_of(every=0)


def test_start_rates_and_decay() -> None:
    gpt = gpt_of(init=0.5)
    attention = gpt.blocks[2].attn
    assert attention.value_scale.item() == 0.5
    assert attention.value_embedding.weight.std().item() == pytest.approx(0.02, rel=0.2)
    of = {id(p): group for group in parameter_groups(gpt, 0.1) for p in group["params"]}
    table, scale = of[id(attention.value_embedding.weight)], of[id(attention.value_scale)]
    assert (table["weight_decay"], table["lr_mult"]) == (0.0, 1.0)
    assert (scale["weight_decay"], scale["lr_mult"]) == (0.0, 10.0)


def test_embeddings_in_a_block_are_not_muons() -> None:
    gpt = gpt_of()
    muons = {id(p) for group in muon_groups(gpt, {"lr": 1e-3}) if group["use_muon"] for p in group["params"]}
    assert id(gpt.blocks[2].attn.c_attn.weight) in muons
    assert id(gpt.blocks[2].attn.value_embedding.weight) not in muons


@pytest.mark.parametrize("topology", [name for name in REGISTERED["topology"] if name != "sphere"])
def test_every_topology_hands_on_the_token_ids(topology: str) -> None:
    gpt = gpt_of(topology)
    assert_every_parameter_learns_and_no_forward_leaks(gpt)
    idx = torch.tensor([[3, 1, 4, 1, 5]])
    gpt.zero_grad()
    gpt(idx)[0].square().sum().backward()
    rows = gpt.blocks[2].attn.value_embedding.weight.grad.abs().sum(-1).nonzero().flatten()
    assert rows.tolist() == [1, 3, 4, 5]


def own_topology(tmp_path: Path, parameters: str, first: str) -> GPT:
    path = tmp_path / "own.py"
    path.write_text(OWN.format(parameters=parameters, first=first))
    return gpt_of(f"{path}:Topology")


def test_a_topology_of_ones_own_may_look_tokens_up(tmp_path: Path) -> None:
    gpt = own_topology(tmp_path, ", state", "x = x + self.rows(state['idx'])")
    idx = torch.randint(0, 32, (2, 8))
    expected = gpt_of()
    expected.load_state_dict({n: t for n, t in gpt.state_dict().items() if ".topology." not in n})
    rows = gpt.transformer["topology"].rows.weight
    expected.transformer["drop"].register_forward_hook(lambda module, given, x: x + rows[idx])
    torch.testing.assert_close(gpt(idx)[0], expected(idx)[0])


def test_a_topology_that_does_not_hand_on_the_ids_gets_a_sentence(tmp_path: Path) -> None:
    gpt = own_topology(tmp_path, "", "state = {}")
    with pytest.raises(UserError, match="value_embedding needs the token ids"):
        gpt(torch.randint(0, 32, (2, 8)))


def test_compiled_as_one_graph_equals_eager() -> None:
    torch.compiler.reset()
    gpt, idx = gpt_of(n_layer=2), torch.randint(0, 32, (2, 8))
    compiled = torch.compile(gpt, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(idx)[0], gpt(idx)[0], atol=1e-5, rtol=1e-5)


def test_it_keeps_documents_apart_and_sees_no_future() -> None:
    gpt, idx = gpt_of_documents(block="value_embedding").eval(), tokens()
    changed = idx.clone()
    changed[0, :10] = (changed[0, :10] + 1) % 64
    changed[0, 30:] = (changed[0, 30:] + 1) % 64
    before, after = (gpt(ids, documents=DOCUMENTS)[0][0] for ids in (idx, changed))
    assert torch.equal(before[10:30], after[10:30])
    assert not torch.equal(before[30:35], after[30:35])


@pytest.mark.parametrize("name", ["value_embedding", "value_residual"])
def test_attention_gets_one_precision_under_autocast(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()

    def attend(*given):
        found.update(x.dtype for x in given[:3])
        return document_mask.attend(*given)

    monkeypatch.setattr("model.layers.attend", attend)
    with torch.autocast("cpu", torch.bfloat16):
        GPT(GPTConfig(**TINIEST, block=name)).hidden(torch.randint(0, 32, (2, 8)))
    assert found == {torch.bfloat16}
