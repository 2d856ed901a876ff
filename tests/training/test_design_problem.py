"""The pre-flight check of a run: what summary.json keeps of it, and what the refusal says."""

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model import GPTConfig
from model.preflight import __main__ as command
from tests.tiny import TINY
from training.run.folder import RunFolder
from training.run.preflight import design_problem

NORM = """
import torch
from torch import nn

class LayerNorm(nn.Module):
    def __init__(self, ndim, bias, power):
        super().__init__()
        self.weight, self.power = nn.Parameter(torch.ones(ndim)), power

    def forward(self, x):
        size = x.float().square().mean(-1, keepdim=True)
        if x.dim() > 2:
            size = {over} / torch.arange(1, x.shape[-2] + 1, device=x.device)[:, None]
        return (x.float() * size.add(1e-6).pow(-self.power)).type_as(x) * self.weight
"""
SHAPE = TINY | {"block_size": 24}


def recipe_of(folder: Path, over: str, document_mask: bool = False) -> Any:
    path = folder / "my norm.py"
    path.write_text(NORM.format(over=over))
    model = GPTConfig(**SHAPE, norm=f"{path}:LayerNorm", norm_options={"power": 0.5})
    data, train = SimpleNamespace(document_mask=document_mask), SimpleNamespace(preflight=True)
    return SimpleNamespace(model=model, data=data, train=train)


def test_a_design_that_looks_back_is_marked_and_has_no_document_mask(tmp_path: Path) -> None:
    run, said = RunFolder(tmp_path / "run", 0), []
    assert design_problem(recipe_of(tmp_path, "size.cumsum(-2)"), run, said.append) is None
    assert run.summary["mixes_tokens"] is True and "passed with 1 warning" in run.summary["preflight"]
    assert len([line for line in said if "it mixes tokens: data.document_mask is off for it" in line]) == 1
    again = RunFolder(tmp_path / "again", 0)
    problem = design_problem(recipe_of(tmp_path, "size.cumsum(-2)", True), again, said.append)
    assert problem is not None and problem.startswith(
        "data.document_mask is true, but my norm(power=0.5)+pre "
    )
    assert "set it to false" in problem and "preflight" not in again.summary


def test_vanilla_is_not_marked_and_may_have_a_document_mask(tmp_path: Path) -> None:
    run, recipe = RunFolder(tmp_path / "run", 0), recipe_of(tmp_path, "", True)
    recipe.model = GPTConfig(**SHAPE)
    assert design_problem(recipe, run, print) is None and run.summary["mixes_tokens"] is False


def test_a_refusal_shows_the_command_that_says_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, "size.sum(-2, keepdim=True)")
    problem = design_problem(recipe, RunFolder(tmp_path / "run", 0), lambda line: None)
    assert problem is not None and "--skip_preflight" in problem
    python, module, name, *words = shlex.split(problem.split("`")[1])
    assert (python, module, name) == ("python", "-m", "model.preflight")
    given = command.COMMAND.read(words)
    assert command.COMMAND.build_sections(command.DEFAULTS, given.keys)[0]["model"] == recipe.model
    assert command.main([*words, "--quick"]) == 1
    assert "fail  causality.norm" in capsys.readouterr().out
