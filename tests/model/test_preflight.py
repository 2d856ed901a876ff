"""The pre-flight check refuses what is broken or cheats, by the right check; honest designs pass."""

import json
from pathlib import Path

import pytest
import torch

from model import VARIANTS, GPTConfig
from model.errors import UserError
from model.preflight import __main__ as command
from model.preflight import preflight
from model.preflight.cost import _measure
from tests.model.designs_to_check import (
    BLOCK,
    BLOCKS,
    HONEST,
    NORM,
    NORMS,
    SHAPE,
    check,
    failed,
)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_broken_or_cheating_block_is_refused_by_the_right_check(name: str, tmp_path: Path) -> None:
    init, change, expected = BLOCKS[name]
    text = BLOCK.format(init=init, change=change)
    if name.startswith("in-place"):
        text = text.replace("x = x + self.attn(self.ln_1(x))", "x += self.attn(self.ln_1(x))")
    report = check(tmp_path, text, n_embd=48, n_head=2)
    assert expected in failed(report), report.table()
    assert not report.passed
    assert report.verdict().startswith("refused: ")


@pytest.mark.parametrize("name", NORMS)
def test_a_broken_or_cheating_norm_is_refused_by_the_right_check(name: str, tmp_path: Path) -> None:
    init, body, expected = NORMS[name]
    report = check(tmp_path, NORM.format(init=init, body=body), "norm", "LayerNorm")
    assert expected in failed(report), report.table()


def test_a_norm_that_keeps_its_input_for_a_later_block_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "cheating_candidate.py").write_text(
        "from model.layers import MLP, CausalSelfAttention\n"
        + NORM.format(init="pass", body="KEPT['x'] = x.detach()\n        return self.weight * x")
        + BLOCK.format(init="pass", change="x = x + 0.1 * KEPT['x'].roll(-1, 1)").replace(
            "KEPT = {}\ncalls = []", ""
        )
    )
    module = "cheating_candidate"
    config = GPTConfig(**SHAPE, norm=f"{module}:LayerNorm", block=f"{module}:Block")  # type: ignore[arg-type]
    found = failed(preflight(config, thorough=False))
    assert {"causality.layers", "causality.model"} <= found.keys()
    assert "causality.norm" not in found


def test_a_leak_is_named_with_its_layer_and_position(tmp_path: Path) -> None:
    init, change, _ = BLOCKS["only in the last layer"]
    detail = failed(check(tmp_path, BLOCK.format(init=init, change=change)))["causality.layers"]
    assert detail.startswith("layer 1: the output at position 0 of 66 changes by ")
    assert "with tokens after position 0" in detail


def test_float16_is_named_with_the_operation(tmp_path: Path) -> None:
    init, change, _ = BLOCKS["float16 overflow"]
    detail = failed(check(tmp_path, BLOCK.format(init=init, change=change)))["numerics.float16"]
    assert "overflows in aten.pow" in detail and "torch.float16" in detail


def test_weights_that_must_be_positive_hide_no_leak(tmp_path: Path) -> None:
    init, _ = HONEST["square root of a gain"]
    report = check(tmp_path, BLOCK.format(init=init, change="x = x + torch.sqrt(self.gain) * x.roll(-1, 1)"))
    assert {"causality.layers", "causality.model"} <= failed(report).keys()


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_block_passes(name: str, tmp_path: Path) -> None:
    init, change = HONEST[name]
    report = check(tmp_path, BLOCK.format(init=init, change=change))
    assert report.passed, report.table()


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_passes(name: str) -> None:
    shape = SHAPE | {"n_layer": 4, "block_size": 24}
    report = preflight(GPTConfig(**shape, **VARIANTS[name].design), thorough=False)  # type: ignore[arg-type]
    assert report.passed, report.table()


def test_vanilla_passes_without_a_warning() -> None:
    report = preflight(GPTConfig(**SHAPE), thorough=False)  # type: ignore[arg-type]
    assert report.passed and report.verdict() == "passed with 0 warnings", report.table()
    assert report.numbers["documents_apart"] is True


def test_a_design_that_mixes_positions_itself_cannot_have_a_document_mask(tmp_path: Path) -> None:
    init, change = HONEST["causal convolution"]
    report = check(tmp_path, BLOCK.format(init=init, change=change))
    (found,) = [check for check in report.checks if check.name == "contract.documents"]
    assert found.status == "warn" and "mixes tokens: data.document_mask is off" in found.detail
    assert report.numbers["documents_apart"] is False and report.numbers["mixes_tokens"] is True


def test_an_exception_is_a_failed_check_with_the_candidates_line(tmp_path: Path) -> None:
    report = check(tmp_path, BLOCK.format(init="pass", change="x = x + torch.zeros(5)"))
    line = BLOCK[: BLOCK.index("{change}")].count("\n") + 1
    (detail,) = failed(report).values()
    assert "RuntimeError" in detail and f"(candidate.py line {line})" in detail


def test_flops_are_those_of_the_papers() -> None:
    """Six for each weight of a matrix product, and 14 T C per layer for scores and values, uncausal."""
    config = GPTConfig(n_layer=3, n_head=2, n_embd=32, block_size=48, vocab_size=128)
    weights = 3 * 12 * 32**2 + 128 * 32
    assert _measure(config)["flops_per_token"] == 6 * weights + 14 * 3 * 48 * 32
    bf16_streams = 3 * 2 * 32 * 2  # a residual stream before each sublayer, at the least
    assert _measure(config)["activation_bytes_per_token"] > bf16_streams


def test_the_callers_random_numbers_and_threads_go_on(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    preflight(GPTConfig(**SHAPE), thorough=False)  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == threads


def test_a_design_that_does_not_exist_is_one_sentence() -> None:
    with pytest.raises(UserError, match="did you mean 'rmsnorm'"):
        preflight(GPTConfig(**SHAPE, norm="rmsnrm"))  # type: ignore[arg-type]


FLAGS = [item for key, value in SHAPE.items() for item in (f"--model.{key}", str(value))]


def test_the_command_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    options = ["--model.variant", "rmsnorm", "--model.norm_options.eps", "1e-6"]
    assert command.main([*FLAGS, *options, "--quick", "--json", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "passed with 0 warnings"
    report = json.loads(out.read_text())
    assert report["passed"] is True and report["design"] == "rmsnorm(eps=1e-06)+pre"
    assert {"name", "status", "detail"} == set(report["checks"][0])
    assert len(report["numbers"]["stream_rms"]) == SHAPE["n_layer"]


def test_the_command_refuses_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "candidate.py"
    path.write_text(BLOCK.format(init="pass", change="x = x + x.roll(-1, 1)"))
    assert command.main([*FLAGS, "--model.variant", str(path), "--quick"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("refused: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model.n_layers", "3"], "the nearest known key is 'model.n_layer'"),
        (["--model.n_layer", "many"], "model.n_layer is 'many', but it must be an integer"),
        (["--model.norm", "rmsnrm"], "did you mean 'rmsnorm'?"),
        (["--model.variant", "rmsnrm"], "did you mean 'rmsnorm'?"),
        (["--model.preset", "gpt2_mega"], "did you mean"),
        (["--model.variant", "nowhere.py"], "there is no file"),
        (["--model.norm_options.epsilon", "1"], "is no option of"),
        (["--model.n_head", "3"], "does not divide"),
        (["--n_layer", "3"], "unknown key 'n_layer' in the command line; the nearest known key is"),
        (["--model.n_layer"], "--model.n_layer has no value"),
    ],
)
def test_what_the_command_does_not_know_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*arguments, "--quick"]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    words = capsys.readouterr().out.split()
    assert {"--model.norm", "--model.variant", "--quick", "--json", "gpt2_medium,", "rmsnorm,"} <= set(words)


@pytest.mark.slow
def test_a_thorough_check_measures_cost_and_learning() -> None:
    text = (Path(__file__).read_bytes() * 2)[:40_000]
    tokens = torch.tensor(list(text))
    report = preflight(GPTConfig(**SHAPE, **VARIANTS["rmsnorm"].design), tokens=tokens)  # type: ignore[arg-type]
    assert report.passed, report.table()
    numbers = report.numbers
    assert numbers["parameters"] < numbers["parameters_vanilla"]
    assert numbers["flops_per_token"] == numbers["flops_per_token_vanilla"] > 0
    assert numbers["overfit_last"] < 0.5 * numbers["overfit_first"]
    assert abs(numbers["text_loss"] - numbers["text_loss_vanilla"]) < 0.2
    assert numbers["graph_breaks"] == 0


@pytest.mark.slow
def test_a_block_that_does_not_learn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "candidate.py"
    path.write_text(NORM.format(init="pass", body="return 1e-9 * self.weight * x"))
    report = preflight(GPTConfig(**SHAPE, norm=f"{path}:LayerNorm"))  # type: ignore[arg-type]
    assert failed(report).keys() == {"learning.overfit"}, report.table()


@pytest.mark.slow
def test_a_graph_break_is_named(tmp_path: Path) -> None:
    path = tmp_path / "candidate.py"
    path.write_text(BLOCK.format(init="pass", change="torch._dynamo.graph_break()"))
    report = preflight(GPTConfig(**SHAPE, block=f"{path}:Block"))  # type: ignore[arg-type]
    (found,) = [check for check in report.checks if check.name == "cost.compile"]
    assert found.status == "warn" and "graph breaks" in found.detail
    (skipped,) = [check for check in report.checks if check.name == "learning.text"]
    assert skipped.status == "warn" and "no tokens" in skipped.detail
