"""Hyper-connections against the package of that name, transformers' DeepSeek-V4, and formulas."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from hyper_connections import HyperConnections as TheirConnection
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

from model.connections import SinkhornConnection
from model.errors import UserError
from model.hyper_connections import HYPER_CONNECTIONS
from tests.model.stream_models import gpt_of, randomised


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
        pre, post, moved = reads_and_writes(connection, H)
        shares = torch.softmax(connection.gates[2] * moved[..., 6:] + connection.constant[6:], dim=-1)
        u = sum(pre[..., i, None] * H[:, :, i] for i in range(3))
        mixed = torch.zeros_like(H)
        for share, order in zip(shares.unbind(-1), itertools.permutations(range(3)), strict=True):
            mixed = mixed + share[..., None, None] * H[:, :, list(order)]
        H = mixed + post[..., None] * branch(u)[:, :, None]
    torch.testing.assert_close(topology(x), sum(H.unbind(2)) / 3, atol=1e-9, rtol=1e-9)


def test_mhc_equals_deepseek_v4(x: torch.Tensor) -> None:
    """In fp32, in which theirs computes; their matrix is used transposed."""
    torch.manual_seed(3)
    ours = SinkhornConnection(1, 3, 16, iterations=20)
    shape = SimpleNamespace(hidden_size=16, hc_mult=3, hc_sinkhorn_iters=20, hc_eps=1e-6, rms_norm_eps=1e-5)
    theirs = DeepseekV4HyperConnection(shape)
    order = torch.cat([torch.arange(6), 6 + torch.arange(9).view(3, 3).T.flatten()])
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        theirs.fn.copy_(ours.projection.T[order])
        theirs.base.copy_(ours.constant[order])
        theirs.scale.copy_(ours.gates)
    H = torch.stack([x, 2 * x, x.roll(1, -1)], dim=2).float()
    post, comb, collapsed = theirs(H)
    read = []
    result = ours(H, lambda u: read.append(u) or u.sin())
    torch.testing.assert_close(read[0], collapsed, atol=1e-5, rtol=1e-5)
    expected = post[..., None] * collapsed.sin()[:, :, None] + comb.transpose(-1, -2) @ H
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("iterations", [1, 20])
def test_mhc_equals_its_formula(x: torch.Tensor, iterations: int) -> None:
    topology, branches = randomised("mhc", streams=3, iterations=iterations)
    H = torch.stack([x] * 3, dim=2)
    for connection, branch in zip(topology.connections, branches, strict=True):
        connection.eps = 0.0
        pre, post, moved = reads_and_writes(connection, H)
        A = torch.exp(moved[..., 6:] * connection.gates[2] + connection.constant[6:]).reshape(2, 8, 3, 3)
        for _ in range(iterations):
            A = A / A.sum(2, keepdim=True)
            A = A / A.sum(3, keepdim=True)
        u = sum(pre[..., i, None] * H[:, :, i] for i in range(3))
        H = torch.einsum("btij,btjc->btic", A, H) + post[..., None] * branch(u)[:, :, None]
    torch.testing.assert_close(topology(x), sum(H.unbind(2)) / 3, atol=1e-9, rtol=1e-9)


def test_identity_hyper_connections_equal_their_formula(x: torch.Tensor) -> None:
    topology, branches = randomised("identity_connections", streams=3)
    H = torch.stack([x] * 3, dim=2)
    for connection, branch in zip(topology.connections, branches, strict=True):
        pre, post, _ = reads_and_writes(connection, H)
        u = sum(pre[..., i, None] * H[:, :, i] for i in range(3))
        H = H + post[..., None] * branch(u)[:, :, None]
    torch.testing.assert_close(topology(x), sum(H.unbind(2)) / 3, atol=1e-9, rtol=1e-9)


def reads_and_writes(connection, H):
    """p and q of three streams, and what all logits are made from."""
    flat = H.reshape(2, 8, 48)
    flat = flat / flat.square().mean(-1, keepdim=True).sqrt()
    moved = flat @ connection.projection
    g, c = connection.gates, connection.constant
    pre = torch.sigmoid(g[0] * moved[..., :3] + c[:3])
    return pre, 2 * torch.sigmoid(g[1] * moved[..., 3:6] + c[3:6]), moved


@pytest.mark.parametrize(
    ("name", "std", "atol"), [("mhc_lite", 0.1, 1e-5), ("mhc_lite", 10.0, 1e-5), ("mhc", 0.1, 1e-4)]
)
def test_streams_are_mixed_by_doubly_stochastic_matrices(name: str, std: float, atol: float) -> None:
    torch.manual_seed(0)
    connection = gpt_of(name).transformer["topology"].connections[1]
    for parameter in connection.parameters():
        torch.nn.init.normal_(parameter, std=std)
    _, _, A = connection.coefficients(torch.randn(2, 8, 4, 16))
    assert (A >= 0).all()
    for dim in (-1, -2):
        torch.testing.assert_close(A.sum(dim), torch.ones(2, 8, 4), atol=atol, rtol=0)


@pytest.mark.parametrize("name", ["mhc", "mhc_lite"])
def test_mixing_starts_near_the_identity(name: str) -> None:
    for k, connection in enumerate(gpt_of(name).transformer["topology"].connections):
        pre, post, A = connection.coefficients(torch.randn(2, 8, 4, 16))
        assert (A.diagonal(dim1=-2, dim2=-1) > 0.99).all()
        torch.testing.assert_close(pre.sum(-1), torch.ones(2, 8))
        assert (pre.argmax(-1) == k % 4).all() and (post == 1).all()


@pytest.mark.parametrize("streams", [2, 4])
@pytest.mark.parametrize("name", ["identity_connections", "mhc", "mhc_lite"])
def test_streams_that_start_alike_part(name: str, streams: int) -> None:
    """Streams that start alike must not have equal gradients, or they would stay alike."""
    gpt = gpt_of(name, streams=streams)
    idx = torch.randint(0, 32, (2, 9))
    gpt(idx[:, :-1], idx[:, 1:])[1].backward()
    first = gpt.transformer["topology"].connections[0]
    post = first.constant.grad[streams : 2 * streams]
    assert (post[0] - post[1]).abs() > 1e-3 * post.abs().max()


@pytest.mark.parametrize(
    ("topology", "options"),
    [("hyper_connections", {"dynamic": True})] + [(name, {}) for name in HYPER_CONNECTIONS],
)
def test_starts_as_the_chain(topology: str, options: dict) -> None:
    idx = torch.randint(0, 32, (2, 8))
    for block in ("pre", "value_residual"):
        torch.testing.assert_close(
            gpt_of(topology, block, **options)(idx)[0], gpt_of("chain", block)(idx)[0], atol=1e-5, rtol=1e-5
        )


def test_a_block_of_another_kind_is_one_branch() -> None:
    topology = gpt_of("hyper_connections", "post").transformer["topology"]
    assert len(topology.connections) == 3


@pytest.mark.parametrize(
    ("topology", "options", "sentence"),
    [
        ("hyper_connections", {"streams": 0}, "at least 1"),
        ("identity_connections", {"streams": 1}, "at least 2"),
        ("mhc", {"streams": 1}, "at least 2"),
        ("mhc", {"iterations": 0}, "at least 1"),
        ("mhc_lite", {"streams": 1}, "from 2 to 5"),
    ],
)
def test_an_impossible_option_gets_a_sentence(topology: str, options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        gpt_of(topology, **options)
