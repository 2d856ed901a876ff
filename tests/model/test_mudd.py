"""MUDD and its block against formulas written here."""

import math

import pytest
import torch

from model import GPT, GPTConfig
from model.errors import UserError
from model.norms import RMSNorm
from tests.model.documents import DOCUMENTS, tokens
from tests.model.documents import gpt_of as gpt_of_documents
from tests.model.wholeness import assert_every_parameter_learns_and_no_forward_leaks
from tests.tiny import TINIEST
from training.engine.build import parameter_groups

BLOCKS = ["pre", "multiway", "value_residual"]


def gpt_of(block: str, n_layer: int = 3, topology: str = "mudd", **options) -> GPT:
    torch.manual_seed(0)
    shape = TINIEST | {"n_layer": n_layer}
    return GPT(GPTConfig(**shape, block=block, topology=topology, topology_options=options))


def randomised(block: str, **options):
    """A topology with random weights in fp64, and its blocks; its RMSNorms have no eps."""
    gpt = gpt_of(block, **options).double()
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for module in gpt.modules():
        if isinstance(module, RMSNorm):
            module.eps = 0.0
    return gpt.transformer["topology"], gpt.blocks


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 8, 16, dtype=torch.double)


def mixtures(dense, outputs, ways: int):
    """The mixtures of all outputs, by the weights that the last of them makes."""
    normed = outputs[-1] / outputs[-1].square().mean(-1, keepdim=True).sqrt()
    h = normed @ dense.projection_1
    h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
    weights = (h @ dense.projection_2).view(2, 8, ways, len(outputs)) + dense.constant
    return list(torch.einsum("btwj,jbtc->wbtc", weights, torch.stack(outputs)))


@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_one_way_equals_its_formula(x: torch.Tensor, last: int) -> None:
    topology, blocks = randomised("pre", last=last)
    outputs, expected = [x], x
    for layer, block in enumerate(blocks):
        expected = block(expected)
        outputs.append(expected)
        first = 3 - (last or 3)
        if layer >= first:
            (expected,) = mixtures(topology.weights[layer - first], outputs, 1)
    torch.testing.assert_close(topology(x), expected, atol=1e-9, rtol=1e-9)


def linear(x, weight, bias):
    return x @ weight.T + bias


def multiway(block, q, k, v, r):
    """A multiway block's formula."""

    def norm(x, ln):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * ln.weight + ln.bias

    parts = zip((q, k, v), block.attn.c_attn.weight.split(16), block.attn.c_attn.bias.split(16), strict=True)
    q, k, v = (linear(norm(x, block.ln_1), *of).view(2, 8, 2, 8).transpose(1, 2) for x, *of in parts)
    future = torch.ones(8, 8).triu(1).bool()
    scores = (q @ k.transpose(2, 3) / math.sqrt(8)).masked_fill(future, -math.inf).softmax(-1)
    heads = (scores @ v).transpose(1, 2).flatten(2)
    x = r + linear(heads, block.attn.c_proj.weight, block.attn.c_proj.bias)
    return x + block.mlp(norm(x, block.ln_2))


@pytest.mark.parametrize("last", [0, 2])
def test_four_ways_equal_their_formula(x: torch.Tensor, last: int) -> None:
    topology, blocks = randomised("multiway", last=last)
    outputs, ways = [x], [x] * 4
    first = 3 - (last or 3)
    for layer, block in enumerate(blocks):
        outputs.append(multiway(block, *ways))
        ways = [outputs[-1]] * 4
        if layer >= first:
            ways = mixtures(topology.weights[layer - first], outputs, 4 if layer < 2 else 1)
    torch.testing.assert_close(topology(x), ways[-1], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("block", BLOCKS)
def test_it_starts_as_the_chain(block: str) -> None:
    gpt = gpt_of(block)
    chain = gpt_of("pre" if block == "multiway" else block, topology="chain")
    ours = {name: t for name, t in gpt.state_dict().items() if ".topology." not in name}
    chain.load_state_dict(ours)  # a multiway block has the parameters of GPT-2's
    idx = torch.randint(0, 32, (2, 8))
    torch.testing.assert_close(gpt(idx)[0], chain(idx)[0], atol=1e-6, rtol=1e-6)


def test_the_first_weights_survive_gpts_init() -> None:
    shape = TINIEST | {"n_embd": 1024}
    weights = GPT(GPTConfig(**shape, topology="mudd")).transformer["topology"].weights[1]
    assert weights.projection_1.shape == (1024, 12) and not weights.projection_2.any()
    assert weights.projection_1.std().item() == pytest.approx(1 / 32, rel=0.05)
    assert weights.constant.tolist() == [[0.0, 0.0, 1.0]]


def test_only_the_matrices_decay() -> None:
    gpt = gpt_of("multiway")
    own = {id(p): n.rpartition(".")[2] for n, p in gpt.transformer["topology"].named_parameters()}
    for group in parameter_groups(gpt, 0.1):
        for name in (own[id(p)] for p in group["params"] if id(p) in own):
            assert group["weight_decay"] == (0.0 if name == "constant" else 0.1)
            assert group["lr_mult"] == 1.0


@pytest.mark.parametrize("last", [-1, 4])
def test_an_impossible_option_gets_a_sentence(last: int) -> None:
    with pytest.raises(UserError, match="from 0 to 3, the layers"):
        gpt_of("pre", last=last)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_parameter_has_a_gradient_and_no_forward_leaks_into_the_next(block: str) -> None:
    assert_every_parameter_learns_and_no_forward_leaks(gpt_of(block))


@pytest.mark.parametrize("block", ["pre", "multiway"])
def test_compiled_as_one_graph_equals_eager(block: str) -> None:
    torch.compiler.reset()
    gpt = gpt_of(block, n_layer=2)
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    idx = torch.randint(0, 32, (2, 8))
    compiled = torch.compile(gpt, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(idx)[0], gpt(idx)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", ["pre", "multiway"])
def test_it_keeps_documents_apart_and_sees_no_future(block: str) -> None:
    gpt, idx = gpt_of_documents(block=block, topology="mudd").eval(), tokens()
    changed = idx.clone()
    changed[0, :10] = (changed[0, :10] + 1) % 64
    changed[0, 30:] = (changed[0, 30:] + 1) % 64
    before, after = (gpt(ids, documents=DOCUMENTS)[0][0] for ids in (idx, changed))
    assert torch.equal(before[10:30], after[10:30])
    assert not torch.equal(before[30:35], after[30:35]) and not torch.equal(before[:10], after[:10])
