"""A mistake in a candidate file is answered once, in one sentence with the file and the line."""

from pathlib import Path

import pytest

from model import GPTConfig, designs_of_file
from model.errors import UserError
from model.preflight import Report, preflight
from tests.model.designs_to_check import BLOCK, SHAPE, failed

NORM = """import torch, torch.nn as nn
class {name}(nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
    def forward(self, x):
        {first}
        return {result}
"""
IN_PLACE = "s = torch.exp(-x.square().mean(-1, keepdim=True))\n        s *= 2"


def report_of(tmp_path: Path, text: str) -> Report:
    path = tmp_path / "candidate.py"
    path.write_text(text)
    return preflight(GPTConfig(**SHAPE, **designs_of_file(str(path))), thorough=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            NORM.format(name="LayerNorm", first=IN_PLACE, result="x * s * self.weight"),
            "a tensor made at candidate.py line 7 is changed in place afterwards, which breaks autograd",
        ),
        (
            NORM.format(name="LayerNorm", first="pass", result="x * self.weight, None"),
            "LayerNorm.forward (candidate.py line 8) returns a tuple for (3, 40, 32): it must return one",
        ),
        (
            BLOCK.format(init="pass", change="return x, None"),
            "Block.forward (candidate.py line 24) returns a tuple for (3, 40, 32): it must return one",
        ),
        (
            NORM.format(name="LayerNorm", first="pass", result="x + torch.ones(5)"),
            "(candidate.py line 8)",
        ),
        (
            NORM.format(name="LayerNorm", first="pass", result="x.mean(-1)"),
            "LayerNorm.forward (candidate.py line 8) returns a (3, 40) for (3, 40, 32): it must return one",
        ),
    ],
)  # fmt: skip
def test_what_fails_in_a_pass_is_one_check_with_the_line(tmp_path: Path, text: str, sentence: str) -> None:
    report = report_of(tmp_path, text)
    assert not report.passed
    (detail,) = failed(report).values()
    assert sentence in detail and "\n" not in detail


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (NORM.format(name="RMSNorm", first="pass", result="x"), "it has RMSNorm: `--model.norm {}:RMSNorm`"),
        (
            BLOCK.format(init="pass", change="pass").replace("class Block", "class GatedBlock"),
            "it has GatedBlock: `--model.block {}:GatedBlock`",
        ),
        (
            "class A:\n    def __init__(self, config): pass\nclass Joined:\n"
            "    def __init__(self, config, blocks): pass\n",
            "it has Joined: `--model.topology {}:Joined`",
        ),
        ("class Helper:\n    pass\n", "defines none of LayerNorm, Block, Topology at its top level"),
    ],
)
def test_a_class_under_another_name_is_named(tmp_path: Path, text: str, end: str) -> None:
    with pytest.raises(UserError) as caught:
        report_of(tmp_path, text)
    assert str(caught.value).endswith(end.format(tmp_path / "candidate.py"))


def test_a_design_that_prints_prints_nothing_into_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of(
        tmp_path, NORM.format(name="LayerNorm", first="print('x is', x.shape)", result="x * self.weight")
    )
    assert report.passed and capsys.readouterr().out == ""
    (warning,) = [check for check in report.checks if check.status == "warn"]
    assert warning.name == "contract.prints" and "'x is torch.Size([3, 40, 32])'" in warning.detail


def test_the_same_exception_is_described_once(tmp_path: Path) -> None:
    text = BLOCK.format(init="pass", change="assert x.dtype != torch.bfloat16, 'not in bf16'")
    details = [check.detail for check in report_of(tmp_path, text).checks if "AssertionError" in check.detail]
    assert len(details) >= 1 and len([detail for detail in details if "not in bf16" in detail]) == 1
