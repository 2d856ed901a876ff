"""Topologies over branches against the packages hyper-connections and attn-res, or formulas written here."""

import itertools

import pytest
import torch
from attn_res import AttnResOperator
from hyper_connections import HyperConnections as TheirConnection

from model import GPT, GPTConfig
from model.errors import UserError
from model.norms import RMSNorm
from model.streams import STREAMS
from tests.model.wholeness import assert_every_parameter_learns_and_no_forward_leaks
from tests.tiny import TINIEST
from training.engine.build import parameter_groups

DESIGNS = {
    "residual": ("residual", {}),
    "static": ("hyper_connections", {}),
    "dynamic": ("hyper_connections", {"dynamic": True}),
    "mhc_lite": ("mhc_lite", {}),
    "attention_residuals": ("attention_residuals", {"group": 2}),
}
"""Name in these tests -> topology and its options."""


def gpt_of(topology: str, block: str | None = None, n_layer: int = 3, **options) -> GPT:
    torch.manual_seed(0)
    block = block or ("bare" if topology == "residual" else "pre")
    return GPT(
        GPTConfig(**TINIEST | {"n_layer": n_layer}, block=block, topology=topology, topology_options=options)
    )


def randomised(topology: str, **options):
    """A topology with random weights in fp64, and its branches as functions; its RMSNorms have no eps."""
    gpt = gpt_of(topology, **options).double()
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    topology = gpt.transformer["topology"]
    for module in topology.modules():
        if isinstance(module, RMSNorm):
            module.eps = 0.0
    branches = [f for block in gpt.blocks for f in (block.attention_branch, block.mlp_branch)]
    return topology, branches


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 8, 16, dtype=torch.double)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("streams", [1, 2, 4])
def test_hyper_connections_equal_the_package(x: torch.Tensor, streams: int, dynamic: bool) -> None:
    topology, branches = randomised("hyper_connections", streams=streams, dynamic=dynamic)
    expand, reduce = TheirConnection.get_expand_reduce_stream_functions(streams)
    residuals = expand(x)
    for k, (ours, branch) in enumerate(zip(topology.connections, branches, strict=True)):
        theirs = TheirConnection(streams, dim=16, layer_index=k, branch=branch).double()
        with torch.no_grad():
            theirs.static_alpha.copy_(ours.width)
            theirs.static_beta.copy_(ours.depth)
            if dynamic:
                theirs.dynamic_alpha_fn.copy_(ours.projection[:, :-1])
                theirs.dynamic_beta_fn.copy_(ours.projection[:, -1])
                theirs.dynamic_alpha_scale.copy_(ours.scale_width[0])
                theirs.dynamic_beta_scale.copy_(ours.scale_depth[0])
        residuals = theirs(residuals)
    torch.testing.assert_close(streams * topology(x), reduce(residuals), atol=1e-9, rtol=1e-9)


def test_hyper_connections_start_as_the_packages() -> None:
    topology = gpt_of("hyper_connections", dynamic=True).transformer["topology"]
    for k, ours in enumerate(topology.connections):
        theirs = TheirConnection(4, dim=16, layer_index=k)
        assert torch.equal(ours.width, theirs.static_alpha) and torch.equal(ours.depth, theirs.static_beta)
        assert (
            ours.scale_width == theirs.dynamic_alpha_scale and ours.scale_depth == theirs.dynamic_beta_scale
        )
        assert not ours.projection.any()


def test_mhc_lite_equals_its_formula(x: torch.Tensor) -> None:
    topology, branches = randomised("mhc_lite", streams=3)
    H = torch.stack([x] * 3, dim=2)
    for connection, branch in zip(topology.connections, branches, strict=True):
        flat = H.reshape(2, 8, 48)
        flat = flat / flat.square().mean(-1, keepdim=True).sqrt()
        moved = flat @ connection.projection
        g, c = connection.gates, connection.constant
        pre = torch.sigmoid(g[0] * moved[..., :3] + c[:3])
        post = 2 * torch.sigmoid(g[1] * moved[..., 3:6] + c[3:6])
        shares = torch.softmax(g[2] * moved[..., 6:] + c[6:], dim=-1)
        u = sum(pre[..., i, None] * H[:, :, i] for i in range(3))
        mixed = torch.zeros_like(H)
        for share, order in zip(shares.unbind(-1), itertools.permutations(range(3)), strict=True):
            mixed = mixed + share[..., None, None] * H[:, :, list(order)]
        H = mixed + post[..., None] * branch(u)[:, :, None]
    torch.testing.assert_close(topology(x), sum(H.unbind(2)) / 3, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("std", [0.1, 10.0])
def test_mhc_lite_mixes_with_doubly_stochastic_matrices(std: float) -> None:
    connection = gpt_of("mhc_lite").transformer["topology"].connections[1]
    for parameter in connection.parameters():
        torch.nn.init.normal_(parameter, std=std)
    _, _, A = connection.coefficients(torch.randn(2, 8, 4, 16))
    assert (A >= 0).all()
    for dim in (-1, -2):
        torch.testing.assert_close(A.sum(dim), torch.ones(2, 8, 4), atol=1e-5, rtol=0)


def test_mhc_lite_starts_near_the_identity() -> None:
    for k, connection in enumerate(gpt_of("mhc_lite").transformer["topology"].connections):
        pre, post, A = connection.coefficients(torch.randn(2, 8, 4, 16))
        assert (A.diagonal(dim1=-2, dim2=-1) > 0.99).all()
        torch.testing.assert_close(pre.sum(-1), torch.ones(2, 8))
        assert (pre.argmax(-1) == k % 4).all() and (post == 1).all()


@pytest.mark.parametrize("streams", [2, 4])
def test_the_streams_of_mhc_lite_part(streams: int) -> None:
    """Streams that start alike must not have equal gradients, or they would stay alike."""
    gpt = gpt_of("mhc_lite", streams=streams)
    idx = torch.randint(0, 32, (2, 9))
    gpt(idx[:, :-1], idx[:, 1:])[1].backward()
    first = gpt.transformer["topology"].connections[0]
    post = first.constant.grad[streams : 2 * streams]
    assert (post[0] - post[1]).abs() > 1e-3 * post.abs().max()


@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_attention_residuals_equal_the_package(x: torch.Tensor, group: int) -> None:
    topology, branches = randomised("attention_residuals", group=group)
    complete, partial, u = [x], None, x
    for k, branch in enumerate(branches):
        output = branch(u)
        partial = output if partial is None else partial + output
        operator = AttnResOperator(16, eps=0.0).double()
        operator.pseudo_query.data.copy_(topology.queries[k])
        operator.key_norm = torch.nn.RMSNorm(16, eps=0.0, elementwise_affine=False)  # theirs is in fp32
        u = operator(torch.stack([*complete, partial]))
        if (k + 1) % group == 0:
            complete, partial = [*complete, partial], None
    torch.testing.assert_close(topology(x), u, atol=1e-9, rtol=1e-9)


def test_one_attention_residual_equals_the_packages_operator_in_fp32() -> None:
    topology = gpt_of("attention_residuals").transformer["topology"]
    operator = AttnResOperator(16, eps=1e-5)
    torch.nn.init.normal_(operator.pseudo_query)
    sources = torch.randn(5, 2, 8, 16)
    ours = topology.mean(list(sources), operator.pseudo_query)
    torch.testing.assert_close(ours, operator(sources), atol=1e-5, rtol=1e-5)


def test_attention_residuals_start_as_a_plain_mean(x: torch.Tensor) -> None:
    topology = gpt_of("attention_residuals").double().transformer["topology"]
    sources = [x, 2 * x, torch.randn_like(x)]
    torch.testing.assert_close(topology.mean(sources, topology.queries[2]), sum(sources) / 3)


def test_residual_equals_its_formula(x: torch.Tensor) -> None:
    topology, branches = randomised("residual")

    def norm(v, ln):
        centred = v - v.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * ln.weight + ln.bias

    post, dual = x, x
    for branch, ln in zip(branches, topology.norms, strict=True):
        output = branch(post)
        post, dual = norm(post + output, ln), dual + output
    torch.testing.assert_close(topology(x), post + norm(dual, topology.norm), atol=1e-9, rtol=1e-9)
    assert isinstance(gpt_of("residual").transformer["ln_f"], torch.nn.Identity)


@pytest.mark.parametrize("design", ["static", "dynamic", "mhc_lite"])
def test_starts_as_the_chain(design: str) -> None:
    topology, options = DESIGNS[design]
    idx = torch.randint(0, 32, (2, 8))
    for block in ("pre", "value_residual"):
        torch.testing.assert_close(
            gpt_of(topology, block, **options)(idx)[0], gpt_of("chain", block)(idx)[0], atol=1e-5, rtol=1e-5
        )


def test_a_block_of_another_kind_is_one_branch() -> None:
    topology = gpt_of("hyper_connections", "post").transformer["topology"]
    assert len(topology.connections) == 3


def test_learning_rates_and_decay() -> None:
    """Only the matrices that make coefficients from the stream decay."""
    for topology, options in DESIGNS.values():
        gpt = gpt_of(topology, **options)
        own = {id(p): n.rpartition(".")[2] for n, p in gpt.transformer["topology"].named_parameters()}
        for group in parameter_groups(gpt, 0.1):
            for parameter in group["params"]:
                if name := own.get(id(parameter)):
                    assert group["weight_decay"] == (0.1 if name == "projection" else 0.0), name
                    assert group["lr_mult"] == (10.0 if name == "constant" else 1.0), name


@pytest.mark.parametrize(
    ("topology", "options", "sentence"),
    [
        ("hyper_connections", {"streams": 0}, "at least 1"),
        ("mhc_lite", {"streams": 1}, "from 2 to 5"),
        ("attention_residuals", {"group": 0}, "at least 1"),
    ],
)
def test_an_impossible_option_gets_a_sentence(topology: str, options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        gpt_of(topology, **options)


@pytest.mark.parametrize("block", [None, "value_residual"])
@pytest.mark.parametrize("design", list(DESIGNS))
def test_every_parameter_has_a_gradient_and_no_forward_leaks_into_the_next(design: str, block: str) -> None:
    topology, options = DESIGNS[design]
    gpt = gpt_of(topology, block, **options)
    assert_every_parameter_learns_and_no_forward_leaks(gpt)


@pytest.mark.parametrize("design", list(DESIGNS))
def test_compiled_as_one_graph_equals_eager(design: str) -> None:
    torch.compiler.reset()
    topology, options = DESIGNS[design]
    eager = gpt_of(topology, n_layer=2, **options).transformer["topology"]
    for parameter in eager.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 8, 16)
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), eager(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("design", list(DESIGNS))
def test_bf16_runs_near_fp32(design: str) -> None:
    topology, options = DESIGNS[design]
    gpt = gpt_of(topology, **options)
    idx = torch.randint(0, 32, (2, 8))
    expected = gpt(idx)[0]
    result = gpt.bfloat16()(idx)[0]
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, atol=0.02, rtol=0.05)


def test_all_designs_are_tested() -> None:
    assert {topology for topology, _ in DESIGNS.values()} == set(STREAMS)
