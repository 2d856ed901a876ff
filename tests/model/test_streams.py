"""ResiDual and Attention Residuals against formulas written here and the package attn-res, and what holds for
all topologies over branches."""

import pytest
import torch
from attn_res import AttnResOperator

from model.errors import UserError
from model.hyper_connections import HYPER_CONNECTIONS
from model.streams import STREAMS
from tests.model.stream_models import gpt_of, randomised
from tests.model.wholeness import assert_every_parameter_learns_and_no_forward_leaks
from training.engine.build import parameter_groups

DESIGNS = {
    "residual": ("residual", {}),
    "static": ("hyper_connections", {}),
    "dynamic": ("hyper_connections", {"dynamic": True}),
    "identity": ("identity_connections", {}),
    "mhc": ("mhc", {}),
    "mhc_lite": ("mhc_lite", {}),
    "attention_residuals": ("attention_residuals", {"group": 2}),
}
"""Name in these tests -> topology and its options."""


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 8, 16, dtype=torch.double)


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


def test_an_impossible_group_gets_a_sentence() -> None:
    with pytest.raises(UserError, match="at least 1"):
        gpt_of("attention_residuals", group=0)


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
    assert {topology for topology, _ in DESIGNS.values()} == set(STREAMS | HYPER_CONNECTIONS)
