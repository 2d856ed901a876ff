"""Designs that would get past a lenient check: honest rounding passes, what hides behind it does not."""

from pathlib import Path

import pytest
import torch

from model.preflight import Check, Report
from model.preflight.perturb import RowProducts
from tests.model.designs_to_check import BLOCK, NORM, check, failed

BACKWARD = """
class Sideways(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        moved = gradient.clone()
        moved[:, 21:22] += gradient[:, 20:21]
        return moved
"""
# name: (what __init__ adds, what forward adds, a check that refuses it)
ADVERSARIES = {
    "one token, in backward only": ("pass", "x = Sideways.apply(x)", "causality.gradient"),
    "through a buffer": (
        "self.register_buffer('kept', torch.zeros(config.n_embd))",
        "y = x + 1e-3 * self.kept.to(x)\n        self.kept = x.detach().mean((0, 1))\n        x = y",
        "contract.repeatable",
    ),
    "through a table that an earlier call has left": (
        "self.table = None",
        "if self.table is None or self.table.shape != x.shape or self.table.dtype != x.dtype:\n"
        "            self.table = x.detach().flip(1).cumsum(1).flip(1)\n"
        "        x = x + 1e-6 * self.table",
        "causality.memory",
    ),
    "through a table of the module, by device": (
        "pass",
        "key = (self.layer, x.shape, x.dtype, x.device)\n"
        "        x = x + 1e-6 * KEPT.setdefault(key, x.detach().flip(1).cumsum(1).flip(1))",
        "causality.memory",
    ),
    "across the batch": ("pass", "x = x + 1e-6 * x.detach().mean(0, keepdim=True)", "contract.batch"),
    "with a coefficient of 1e-6": ("pass", "x = x + 1e-6 * x.detach().roll(-1, 1)", "causality.layers"),
    "while no operation is watched": (
        "pass",
        "x = x if torch._C._len_torch_dispatch_stack() else x + 1e-15 * x.detach().roll(-1, 1)",
        "causality.layers",
    ),
    "in bf16 only": (
        "pass",
        "x = x + 0.1 * x.detach().roll(-1, 1) if x.dtype == torch.bfloat16 else x",
        "causality.lengths",
    ),
}
# Each token goes to one of three experts: a product's rows, and so its rounding, follow from all tokens.
EXPERTS = (
    "self.router = nn.Linear(config.n_embd, 3)\n"
    "        self.experts = nn.ModuleList(nn.Linear(config.n_embd, config.n_embd) for _ in range(3))",
    "flat = self.ln_2(x).reshape(-1, x.shape[-1])\n"
    "        gate, pick = self.router(flat).softmax(-1).max(-1)\n"
    "        out = torch.zeros_like(flat)\n"
    "        for number, expert in enumerate(self.experts):\n"
    "            rows = (pick == number).nonzero().squeeze(-1)\n"
    "            out = out.index_copy(0, rows, expert(flat[rows]))\n"
    "        x = x + (gate[:, None] * out).view_as(x)",
)


def report_of(tmp_path: Path, init: str, change: str) -> Report:
    text = BLOCK.format(init=init, change=change)
    return check(tmp_path, text.replace("\nKEPT", BACKWARD + "\nKEPT", 1), n_embd=48, n_head=2)


def by_name(report: Report) -> dict[str, Check]:
    return {each.name: each for each in report.checks}


@pytest.mark.parametrize("name", ADVERSARIES)
def test_an_adversary_stays_refused(name: str, tmp_path: Path) -> None:
    init, change, expected = ADVERSARIES[name]
    assert expected in failed(report := report_of(tmp_path, init, change)), report.table()


def test_the_rounding_of_gathered_rows_is_a_verdict_of_its_own(tmp_path: Path) -> None:
    report = report_of(tmp_path, *EXPERTS)
    assert report.passed, report.table()
    found = by_name(report)["causality.layers"]
    assert found.status == "rounding" and "but for rounding: layer " in found.detail
    assert report.numbers["mixes_tokens"] is False


@pytest.mark.parametrize(
    ("leak", "expected"),
    [
        ("x = x + 1e-6 * x.detach().roll(-1, 1)", "causality.layers"),
        ("x = x + 1e-12 * x.detach().roll(-1, 1)", "causality.layers"),
        ("x = x + 1e-12 * x.roll(-1, 1)", "causality.gradient"),
        ("x = x + 1e-30 * x.roll(-1, 1)", "causality.gradient"),
        ("x = x + 0.01 * x.detach().roll(-1, 1) if x.dtype == torch.bfloat16 else x", "causality.lengths"),
    ],
)
def test_a_leak_does_not_hide_behind_rounding(leak: str, expected: str, tmp_path: Path) -> None:
    init, change = EXPERTS
    report = report_of(tmp_path, init, f"{change}\n        {leak}")
    assert expected in failed(report), report.table()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_of_a_product_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b, added = (torch.randn(shape, dtype=dtype) for shape in ((37, 50), (50, 29), (29,)))
    with RowProducts():
        whole, plus = a @ b, torch.addmm(added, a, b)
        batched = torch.bmm(a.expand(2, -1, -1), b.expand(2, -1, -1))
        for rows in (a[:1], a[:5], a[:36]):
            assert torch.equal(rows @ b, whole[: len(rows)])
    assert torch.equal(batched[1], whole)
    exact, unit = a.double() @ b.double(), 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(whole.double(), exact, atol=10 * unit, rtol=unit)
    torch.testing.assert_close(plus.double(), exact + added.double(), atol=10 * unit, rtol=unit)


RUNNING = """
mean = x.square().mean(-1, keepdim=True)
        if x.dim() < 3:
            return x * mean.add(1e-6).rsqrt() * self.weight
        over = {over}
        return x * over.add(1e-6).rsqrt() * self.weight"""
PAST = "mean.cumsum(-2) / torch.arange(1, x.shape[-2] + 1, device=x.device, dtype=x.dtype)[:, None]"


def test_a_norm_that_looks_back_is_warned_of_once(tmp_path: Path) -> None:
    text = NORM.format(init="pass", body=RUNNING.format(over=PAST).strip())
    report = check(tmp_path, text, "norm", "LayerNorm")
    (warning,) = [each for each in report.checks if each.status != "pass"]
    assert report.passed and warning.status == "warn", report.table()
    assert "it mixes tokens: data.document_mask is off for it" in warning.detail
    assert report.numbers["mixes_tokens"] is True and report.numbers["documents_apart"] is False
    assert "earlier positions" in by_name(report)["causality.norm"].detail


@pytest.mark.parametrize(
    "over",
    [
        "mean.flip(-2).cumsum(-2).flip(-2)",
        "mean.cumsum(-2).roll(-1, -2)",
        "mean.cumsum(-2).detach().roll(-1, -2) * 1e-6 + mean",
        "mean.cumsum(0)",
        f"{PAST} + 1e-9 * mean.mean(0, keepdim=True)",
    ],
)
def test_a_norm_that_looks_ahead_or_across_stays_refused(over: str, tmp_path: Path) -> None:
    text = NORM.format(init="pass", body=RUNNING.format(over=over).strip())
    assert "causality.norm" in failed(report := check(tmp_path, text, "norm", "LayerNorm")), report.table()


@pytest.mark.parametrize(
    ("mixer", "mixes"),
    [
        ("F.scaled_dot_product_attention(x, x, x, is_causal=True)", False),
        ("F.scaled_dot_product_attention(query=x, key=x, value=x, is_causal=True)", False),
        ("F.scaled_dot_product_attention(x, F.pad(x, (0, 0, 1, 0)), F.pad(x, (0, 0, 1, 0)), PAST)", False),
        ("x.cumsum(1)", True),
        ("F.pad(x, (0, 0, 1, -1))", True),
    ],
)
def test_a_blocks_own_attention_is_no_mixing_and_a_recurrence_is(
    mixer: str, mixes: bool, tmp_path: Path
) -> None:
    past = "torch.ones(x.shape[1], x.shape[1] + 1, dtype=torch.bool, device=x.device).tril(1)"
    report = report_of(tmp_path, "pass", f"x = x + {mixer.replace('PAST', past)}")
    assert report.passed, report.table()
    assert report.numbers["mixes_tokens"] is mixes
