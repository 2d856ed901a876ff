"""Topologies over whole blocks against formulas written here."""

import re

import pytest
import torch

from model import GPT, GPTConfig
from model.catalogue.residuals import RESIDUAL_VARIANTS
from model.catalogue.streams import STREAM_VARIANTS
from model.errors import UserError
from model.topologies import TOPOLOGIES
from tests.model.wholeness import assert_every_parameter_learns_and_no_forward_leaks
from tests.tiny import TINIEST
from training.engine.build import parameter_groups

OURS = [name for name in TOPOLOGIES if name != "chain"]


def gpt_of(topology: str, n_layer: int = 4, block: str = "pre", **options) -> GPT:
    torch.manual_seed(0)
    return GPT(
        GPTConfig(**TINIEST | {"n_layer": n_layer}, block=block, topology=topology, topology_options=options)
    )


def randomised(topology: str, n_layer: int):
    """A topology with random weights in fp64, and its blocks."""
    gpt = gpt_of(topology, n_layer).double()
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return gpt.transformer["topology"], gpt.blocks


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 8, 16, dtype=torch.double)


def test_x0_equals_its_formula(x: torch.Tensor) -> None:
    topology, blocks = randomised("x0", 3)
    x_0 = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = x
    for block, r, z in zip(blocks, topology.stream, topology.embedding, strict=True):
        expected = block(r * expected + z * x_0)
    torch.testing.assert_close(topology(x), expected, atol=1e-10, rtol=1e-10)


def test_denseformer_equals_its_formula(x: torch.Tensor) -> None:
    topology, blocks = randomised("denseformer", 3)
    assert [tuple(a.shape) for a in topology.weights] == [(2,), (3,), (4,)]
    outputs, expected = x[None], x
    for block, a in zip(blocks, topology.weights, strict=True):
        outputs = torch.cat([outputs, block(expected)[None]])
        expected = torch.einsum("j,jbtc->btc", a, outputs)
    torch.testing.assert_close(topology(x), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("n_layer", "skips"), [(4, {3: 0, 2: 1}), (5, {4: 0, 3: 1})])
def test_unet_equals_its_formula(x: torch.Tensor, n_layer: int, skips: dict[int, int]) -> None:
    topology, blocks = randomised("unet", n_layer)
    outputs, expected = [], x
    for layer, block in enumerate(blocks):
        if layer in skips:
            expected = expected + topology.skips[skips[layer]] * outputs[skips[layer]]
        expected = block(expected)
        outputs.append(expected)
    torch.testing.assert_close(topology(x), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("n_layer", "middle"), [(2, 1), (4, 2), (5, 2)])
def test_backout_equals_its_formula(x: torch.Tensor, n_layer: int, middle: int) -> None:
    topology, blocks = randomised("backout", n_layer)
    outputs, expected = [], x
    for block in blocks:
        expected = block(expected)
        outputs.append(expected)
    expected = expected - topology.backout * outputs[middle]
    torch.testing.assert_close(topology(x), expected, atol=1e-10, rtol=1e-10)


def test_embedding_norm_equals_its_formula(x: torch.Tensor) -> None:
    topology, blocks = randomised("embedding_norm", 2)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = expected * topology.norm.weight + topology.norm.bias
    for block in blocks:
        expected = block(expected)
    torch.testing.assert_close(topology(x), expected, atol=1e-10, rtol=1e-10)


def test_embedding_norm_makes_the_first_stream_of_size_1() -> None:
    gpt, streams = gpt_of("embedding_norm"), []
    gpt.blocks[0].register_forward_pre_hook(lambda module, given: streams.append(given[0]))
    gpt(torch.randint(0, 32, (2, 8)))
    torch.testing.assert_close(streams[0].square().mean(-1), torch.ones(2, 8), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", [name for name in OURS if name != "embedding_norm"])
def test_starts_as_the_chain(name: str) -> None:
    idx = torch.randint(0, 32, (2, 8))
    gpt, chain = gpt_of(name), gpt_of("chain")
    assert gpt.num_parameters() > chain.num_parameters()
    torch.testing.assert_close(gpt(idx)[0], chain(idx)[0], atol=1e-6, rtol=1e-6)


def test_options_set_the_start() -> None:
    topology = gpt_of("x0", stream=1.1, embedding=0.2).transformer["topology"]
    assert torch.allclose(topology.stream, torch.full((4,), 1.1))
    assert torch.allclose(topology.embedding, torch.full((4,), 0.2))
    assert (gpt_of("unet", init=1.0).transformer["topology"].skips == 1).all()
    assert gpt_of("backout", init=0.5).transformer["topology"].backout.item() == 0.5
    for name in ("unet", "backout"):
        with pytest.raises(UserError, match="needs 2 layers"):
            gpt_of(name, n_layer=1)


def test_learning_rates_and_decay() -> None:
    for name, fast in (
        ("x0", {"embedding"}),
        ("denseformer", set()),
        ("unet", {"skips"}),
        ("backout", {"backout"}),
    ):
        gpt = gpt_of(name)
        own = {id(p): n for n, p in gpt.transformer["topology"].named_parameters()}
        for group in parameter_groups(gpt, 0.1):
            names = {own[id(p)] for p in group["params"] if id(p) in own}
            if names:
                assert group["weight_decay"] == 0.0
                assert group["lr_mult"] == (10.0 if names <= fast else 1.0)


@pytest.mark.parametrize("block", ["pre", "value_residual"])
@pytest.mark.parametrize("name", OURS)
def test_every_parameter_has_a_gradient_and_no_forward_leaks_into_the_next(name: str, block: str) -> None:
    gpt = gpt_of(name, block=block)
    assert_every_parameter_learns_and_no_forward_leaks(gpt)


@pytest.mark.parametrize("name", OURS)
def test_compiled_as_one_graph_equals_eager(name: str) -> None:
    torch.compiler.reset()
    gpt = gpt_of(name, n_layer=2)
    for parameter in gpt.transformer["topology"].parameters():
        torch.nn.init.normal_(parameter)
    idx = torch.randint(0, 32, (2, 8))
    compiled = torch.compile(gpt, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(idx)[0], gpt(idx)[0], atol=1e-5, rtol=1e-5)


def test_the_catalogue_dates_its_evidence() -> None:
    for name, variant in (RESIDUAL_VARIANTS | STREAM_VARIANTS).items():
        assert re.match(r"20\d\d-\d\d: ", variant.evidence), name
