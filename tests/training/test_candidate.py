"""CONFIG_OVERRIDES of a candidate's file: read and not run, and who wins."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.command_lines import command, recipe_folder, refusal
from training.config import DeepSpeedConfig, Recipe, read_command
from training.config.candidate import Overrides
from training.schedule import learning_rate

NORM = """
import torch
from torch import nn

class LayerNorm(nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))

    def forward(self, x):
        return x * self.weight
"""
TRAINING_CODE = """
for name, value in CONFIG_OVERRIDES.items():
    globals()[name] = value
raise SystemExit("this script was run")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return recipe_folder(tmp_path, monkeypatch)


def candidate(folder: Path, overrides: str) -> list[str]:
    """A recipe of 120 steps and a warm-up of 10, the JSON's rate of 6e-4, and the candidate."""
    (folder / "mine.py").write_text(f"{NORM}\n{overrides}\n{TRAINING_CODE}")
    return command(folder, "--model.variant", "mine.py")


def resolved(argv: list[str]) -> tuple[Recipe, DeepSpeedConfig, Overrides]:
    recipe, deepspeed, _, overrides = read_command(argv)
    return recipe, deepspeed, overrides


def rates(recipe: Recipe, deepspeed: DeepSpeedConfig) -> dict[str, Any]:
    return {
        "learning_rate": deepspeed.peak_lr,
        "weight_decay": deepspeed.weight_decay,
        "grad_clip": deepspeed.raw["gradient_clipping"],
        "warmup_iters": recipe.schedule.warmup_steps,
        "min_lr": pytest.approx(learning_rate(120, deepspeed.peak_lr, recipe.schedule), rel=1e-12),
    }


USUAL = {"learning_rate": 6e-4, "weight_decay": 0.1, "grad_clip": 1.0, "warmup_iters": 10, "min_lr": 6e-5}
ALL = {"learning_rate": 3e-4, "weight_decay": 0.05, "grad_clip": 0.5, "warmup_iters": 40, "min_lr": 1e-5}


@pytest.mark.parametrize("name", [*ALL, "all of them"])
def test_a_candidates_rates_replace_the_recipes_and_the_jsons(folder: Path, name: str) -> None:
    own = ALL if name == "all of them" else {name: ALL[name]}
    recipe, deepspeed, overrides = resolved(candidate(folder, f"CONFIG_OVERRIDES = {own}"))
    expected = USUAL | own
    if name == "learning_rate":
        expected["min_lr"] = 3e-5  # still a tenth of the peak
    assert rates(recipe, deepspeed) == expected
    assert (overrides.given, overrides.applied) == (own, own)
    assert overrides.instead_of == pytest.approx({key: USUAL[key] for key in own}, rel=1e-12)
    assert all(any(key in sentence for sentence in overrides.sentences()) for key in own)


def test_the_command_line_is_stronger_and_the_run_folder_repeats_it(folder: Path) -> None:
    argv = candidate(folder, f"CONFIG_OVERRIDES = {ALL}")
    argv += ["--ds.optimizer.params.lr", "1e-3", "--schedule.warmup", "7"]
    recipe, deepspeed, overrides = resolved(argv)
    assert rates(recipe, deepspeed) == ALL | {"learning_rate": 1e-3, "warmup_iters": 7}
    assert set(overrides.applied) == {"weight_decay", "grad_clip", "min_lr"}
    assert "not followed in learning_rate 0.0003, warmup_iters 40" in overrides.sentences()[-1]
    _, _, run, _ = read_command(argv)
    run.path.mkdir()
    run.write_configs(vars(recipe), deepspeed.raw, argv)
    run.append_metrics(kind="train", step=1, loss=1.0)
    files = [str(run.path / "recipe.yaml"), "--deepspeed_config", str(run.path / "ds_config.json")]
    again, of_engine, _ = resolved(["--config", *files])
    assert rates(again, of_engine) == rates(recipe, deepspeed)
    assert read_command(argv)[2].summary == {}  # the same command goes on in the same folder


def test_ignore_trains_at_the_recipes_rates_and_refuse_does_not_train(folder: Path) -> None:
    argv = candidate(folder, f"CONFIG_OVERRIDES = {ALL}")
    recipe, deepspeed, overrides = resolved([*argv, "--train.candidate_overrides", "ignore"])
    assert rates(recipe, deepspeed) == USUAL and overrides == Overrides(ALL)
    message = refusal([*argv, "--train.candidate_overrides", "refuse"])
    assert "CONFIG_OVERRIDES (learning_rate, weight_decay" in message and "ignore" in message
    plain = candidate(folder, "CONFIG_OVERRIDES = {}")
    assert resolved([*plain, "--train.candidate_overrides", "refuse"])[2] == Overrides()


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ("CONFIG_OVERRIDES = {'lr': 1}", ["'lr'", "may set learning_rate, weight_decay, grad_clip"]),
        ("CONFIG_OVERRIDES = {'beta2': 0.99}", ["'beta2'", "min_lr"]),
        ("CONFIG_OVERRIDES = {'learning_rate': 0}", ["learning_rate to 0", "above 0"]),
        ("CONFIG_OVERRIDES = {'learning_rate': '3e-4'}", ["learning_rate to '3e-4'", "a number"]),
        ("CONFIG_OVERRIDES = {'grad_clip': True}", ["grad_clip to True", "a number"]),
        ("CONFIG_OVERRIDES = {'weight_decay': -0.1}", ["weight_decay to -0.1", "at least 0"]),
        ("CONFIG_OVERRIDES = {'weight_decay': 1e999}", ["weight_decay to inf", "a number"]),
        ("CONFIG_OVERRIDES = {'warmup_iters': 1.5}", ["warmup_iters to 1.5", "whole steps"]),
        ("CONFIG_OVERRIDES = {'warmup_iters': 120}", ["schedule.steps is 120", "120 steps"]),
        ("CONFIG_OVERRIDES = {'min_lr': 1e-3}", ["min_lr to 0.001", "above the peak 0.0006"]),
        ("CONFIG_OVERRIDES = ['learning_rate']", ["must be a dict"]),
        ("CONFIG_OVERRIDES = dict(learning_rate=3e-4)", ["line 13", "set once, to a literal"]),
        ("CONFIG_OVERRIDES = {}\nCONFIG_OVERRIDES['grad_clip'] = 2", ["line 14", "set once"]),
        ("CONFIG_OVERRIDES = {}\nCONFIG_OVERRIDES.update(grad_clip=2)", ["line 14", "set once"]),
        ("CONFIG_OVERRIDES = {}\nif True:\n    CONFIG_OVERRIDES = {'grad_clip': 2}", ["line 15", "set once"]),
    ],
)
def test_what_cannot_be_followed_gets_one_sentence(folder: Path, overrides: str, parts: list[str]) -> None:
    message = refusal(candidate(folder, overrides))
    assert "mine.py" in message or "schedule" in message or "CONFIG_OVERRIDES" in message
    assert [part for part in parts if part not in message] == [], message


def test_two_files_of_a_design_must_agree(folder: Path) -> None:
    argv = candidate(folder, "CONFIG_OVERRIDES = {'learning_rate': 3e-4}")
    block = NORM.replace("LayerNorm", "Block").replace("ndim, bias", "config").replace("(ndim)", "(1)")
    other = folder / "other.py"
    other.write_text(f"{block}\nCONFIG_OVERRIDES = {{'learning_rate': 2e-4}}\n")
    message = refusal([*argv, "--model.block", "other.py:Block"])
    assert "learning_rate to 0.0002, another file to 0.0003" in message
    other.write_text(f"{block}\nCONFIG_OVERRIDES: dict = {{'grad_clip': 2.0}}\n")
    overrides = resolved([*argv, "--model.block", "other.py:Block"])[2]
    assert overrides.applied == {"learning_rate": 3e-4, "grad_clip": 2.0}


def test_rates_of_muon_are_not_overridden_in_vain(folder: Path) -> None:
    argv = candidate(folder, "CONFIG_OVERRIDES = {'learning_rate': 3e-4}")
    muon = Path(__file__).resolve().parents[2] / "ds_configs" / "zero1_bf16_muon.json"
    assert {"muon_lr", "adam_lr"} & json.loads(muon.read_text())["optimizer"]["params"].keys()
    assert "muon_lr or adam_lr" in refusal([*argv, "--deepspeed_config", str(muon)])


def test_a_run_from_before_an_option_goes_on(folder: Path) -> None:
    """Its recipe.yaml lacks keys that are new, and has one by its older name."""
    argv = command(folder)
    recipe, deepspeed, run, _ = read_command(argv)
    run.path.mkdir()
    run.write_configs(vars(recipe), deepspeed.raw, argv)
    run.append_metrics(kind="train", step=1, loss=1.0)
    stored = yaml.safe_load((run.path / "recipe.yaml").read_text())
    stored["schedule"]["warmup_steps"] = stored["schedule"].pop("warmup")
    del stored["schedule"]["warmup_formula"], stored["model"]["mlp"], stored["train"]["candidate_overrides"]
    (run.path / "recipe.yaml").write_text(yaml.safe_dump(stored))
    assert read_command(argv)[0] == recipe
    assert "model.mlp = 'gelu_tanh', but 'gelu'" in refusal([*argv, "--model.mlp", "gelu"])
    assert "schedule.warmup = 10, but 11" in refusal([*argv, "--schedule.warmup", "11"])
    # and so does a recipe with the older name, which may not stand beside the newer
    (folder / "recipe.yaml").write_text("train: {steps: 120}\nschedule: {warmup_steps: 10}\n")
    assert read_command(argv)[0] == recipe == read_command([*argv, "--schedule.warmup_steps", "10"])[0]
    (folder / "recipe.yaml").write_text("schedule: {warmup_steps: 10, warmup: 10}\n")
    assert "sets schedule.warmup twice" in refusal(argv)
