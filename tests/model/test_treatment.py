"""How the tensors of a design are treated: buffers, unused parameters, parameters of another precision."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model import GPT, VARIANTS, GPTConfig, designs_of_file, flops_per_token
from model.errors import UserError
from model.preflight import Report, preflight
from model.probe import probe
from model.treatment import Treatment
from tests.own_designs import CAST, COMPLEX, DESIGNS, EXPERTS, KEPT, LEFTOVER, SCALAR

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 64}
HEAD = CAST.partition("class")[0]
TABLES = """
class Tables:
    def __init__(self):
        self.length = None
    def __call__(self, length, like):
        if length != self.length:
            self.length = length
            self.scale = (1 + torch.arange(length) / 64)[:, None].to(like)
        return self.scale
"""
CACHED = (
    HEAD
    + TABLES
    + """
class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.mlp = MLP(config)
        self.tables = Tables()
    def forward(self, x):
        x = x + self.attn(self.ln_1(x) * self.tables(x.shape[1], x))
        return x + self.mlp(self.ln_2(x))
"""
)
LEAKING = CACHED.replace("self.scale = (1", "self.scale = like.detach().mean() * (1")


def config_of(folder: Path, text: str) -> GPTConfig:
    path = folder / "candidate.py"
    path.write_text(text)
    return GPTConfig(**SHAPE, **designs_of_file(str(path)))


def details(report: Report) -> dict[str, str]:
    """What did not pass, by check."""
    return {check.name: check.detail for check in report.checks if check.status != "pass"}


def buffers_of(gpt: GPT) -> set[torch.dtype]:
    return {buffer.dtype for buffer in gpt.buffers() if buffer.is_floating_point() or buffer.is_complex()}


def test_a_buffer_keeps_its_precision_where_the_design_runs_so(tmp_path: Path) -> None:
    config = config_of(tmp_path, KEPT)
    assert probe(config) == Treatment()
    gpt = GPT(config).bfloat16()
    assert buffers_of(gpt) == {torch.float32} and gpt.lm_head.weight.dtype == torch.bfloat16
    norm = gpt.transformer["ln_f"]
    torch.testing.assert_close(norm.scale, torch.linspace(0.5, 1.5, 32) ** 0.1, rtol=0, atol=0)
    assert details(preflight(config, thorough=False)) == {}


def test_a_buffer_is_cast_where_it_does_not_with_a_warning(tmp_path: Path) -> None:
    config = config_of(tmp_path, CAST)
    treatment = probe(config)
    assert treatment.buffers == "cast" and len(treatment.buffer_names) == 5
    report = preflight(config, thorough=False)
    assert report.passed and Treatment.of(report.numbers) == treatment
    warning = details(report)["contract.buffers"]
    assert "5 buffers are cast" in warning and "transformer.h.0.ln_1.scale" in warning
    assert ".type_as(x)" in warning
    gpt = GPT(config)
    gpt.treat(treatment)
    assert buffers_of(gpt) == {torch.float32}
    assert buffers_of(gpt.bfloat16()) == {torch.bfloat16} and buffers_of(gpt.float()) == {torch.float32}


@pytest.mark.parametrize("bias", [True, False])
def test_our_own_designs_need_no_treatment(bias: bool) -> None:
    for variant in VARIANTS.values():
        assert probe(GPTConfig(**SHAPE, bias=bias, **variant.design)) == Treatment(), variant


def test_another_precision_with_no_buffer_to_blame_is_refused(tmp_path: Path) -> None:
    text = SCALAR.replace("return x *", "return x.float() *")
    report = preflight(config_of(tmp_path, text), thorough=False)
    assert not report.passed and report.numbers.get("buffers", "kept") == "kept"
    also_with_a_buffer = KEPT.replace("y.type_as(x)", "y")
    assert not preflight(config_of(tmp_path, also_with_a_buffer), thorough=False).passed


def test_a_complex_buffer_stays_complex(tmp_path: Path) -> None:
    config = config_of(tmp_path, COMPLEX)
    torch.manual_seed(0)
    gpt = GPT(config)
    turn = gpt.blocks[0].turn.clone()
    for module in (gpt.bfloat16(), gpt.double(), gpt.to("cpu")):
        assert torch.equal(module.blocks[0].turn, turn) and turn.imag.any()
    x = torch.randn(1, 16, 32)
    turned = gpt.blocks[0].turned(x).view(16, 16, 2)
    expected = x.view(16, 16, 2)
    re, im = turn.real, turn.imag
    a, b = expected[..., 0], expected[..., 1]
    torch.testing.assert_close(turned, torch.stack([a * re - b * im, a * im + b * re], -1))
    assert preflight(config, thorough=False).passed


def test_a_complex_parameter_is_refused_with_the_way_out(tmp_path: Path) -> None:
    text = SCALAR.replace("torch.tensor(0.5)", "torch.tensor(0.5 + 1j)")
    with pytest.raises(UserError, match=r"complex.*torch\.view_as_real"):
        GPT(config_of(tmp_path, text))


@pytest.mark.parametrize("made", ["torch.ones(ndim, dtype=torch.bfloat16)", "torch.ones(ndim).half()"])
def test_a_parameter_of_another_precision_is_brought_to_the_models(made: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, SCALAR.replace("torch.ones(ndim)", made))
    gpt = GPT(config)
    assert {p.dtype for p in gpt.parameters()} == {torch.float32} and len(gpt.brought_over) == 5
    report = preflight(config, thorough=False)
    assert report.passed
    assert "5 parameters are made in another precision" in details(report)["contract.builds"]


def test_parameters_without_gradient_are_named_and_do_not_count(tmp_path: Path) -> None:
    config = config_of(tmp_path, LEFTOVER)
    report = preflight(config, thorough=False)
    assert report.passed
    warning = details(report)["contract.parameters"]
    assert warning.startswith("8 parameters get no gradient and are left out")
    assert "transformer.h.0.ln_2.weight" in warning
    gpt = GPT(config)
    everything, flops = gpt.num_parameters(), flops_per_token(gpt)
    gpt.treat(Treatment.of(report.numbers))
    left_over = 2 * (2 * 32 + 32 * 32 + 32)
    assert gpt.num_parameters() == everything - left_over
    assert flops_per_token(gpt) == flops - 6 * 2 * 32 * 32
    trained = {name for name, p in gpt.named_parameters() if p.requires_grad}
    assert not any("ln_2" in name or "left_over" in name for name in trained)
    assert probe(config) == Treatment.of(report.numbers)


def test_experts_without_tokens_are_not_unused(tmp_path: Path) -> None:
    treatment = probe(config_of(tmp_path, EXPERTS))
    assert treatment.unused == () and len(treatment.sometimes) == 2 * 16 * 2
    beside = EXPERTS.replace("self.router =", "self.spare = nn.Linear(3, 3)\n        self.router =")
    found = probe(config_of(tmp_path, beside))
    assert {name.split(".")[-2] for name in found.unused} == {"spare"} and len(found.unused) == 4


def test_what_only_some_steps_or_lengths_use_trains(tmp_path: Path) -> None:
    text = SCALAR.replace("* (1 + self.gain)", "* (1 + self.gain if x.shape[1] == 1 else 1)")
    treatment = probe(config_of(tmp_path, text))
    assert treatment.unused == () and len(treatment.sometimes) == 5


def test_parameters_that_a_batch_does_not_use_get_a_gradient_of_0(tmp_path: Path) -> None:
    config = config_of(tmp_path, EXPERTS)
    gpt, plain = GPT(config).train(), GPT(config).train()
    plain.load_state_dict(gpt.state_dict())
    gpt.treat(probe(config))
    idx = torch.full((1, 8), 7)
    for model in (gpt, plain):
        _, loss = model(idx, idx)
        assert loss is not None
        loss.backward()
    empty = 0
    for ours, theirs in zip(gpt.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        if theirs.grad is None:
            empty += 1
            assert not ours.grad.any()
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)
    assert empty > 10


def test_tables_of_the_first_call_pass_and_a_leak_through_them_does_not(tmp_path: Path) -> None:
    report = preflight(config_of(tmp_path, CACHED), thorough=False)
    assert report.passed, report.table()
    assert "device" not in str(details(report))
    report = preflight(config_of(tmp_path, LEAKING), thorough=False)
    assert not report.passed
    assert {"contract.repeatable", "causality.memory", "causality.model"} & details(report).keys()


def test_a_scalar_computes_what_its_formula_says(tmp_path: Path) -> None:
    gpt = GPT(config_of(tmp_path, DESIGNS["own_scalar"]))
    norm, x = gpt.transformer["ln_f"], torch.randn(3, 32)
    assert norm.gain.shape == () and list(gpt.state_dict()["transformer.ln_f.gain"].shape) == []
    torch.testing.assert_close(norm(x), 1.5 * F.normalize(x, dim=-1) * math.sqrt(32), rtol=1e-4, atol=1e-4)
