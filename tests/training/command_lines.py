"""Command lines of train.py on a small recipe, for the tests of configs."""

from pathlib import Path

import pytest

from model.errors import UserError
from tests.distributed import of_rank
from training.config import DeepSpeedConfig, Recipe, check_design, read_command
from training.engine.environment import LAUNCHER
from training.run.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "train: {steps: 120}\nschedule: {warmup: 10}\n"
DS_CONFIG = ROOT / "ds_configs" / "zero1_bf16.json"


def recipe_folder(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make a folder one that holds a recipe.yaml, which a test may overwrite, for a run of one rank."""
    for name in LAUNCHER:
        patch.delenv(name, raising=False)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def be_rank_0(patch: pytest.MonkeyPatch, ranks: int) -> None:
    """Have the environment be that of the first of so many ranks."""
    for name, value in of_rank(0, ranks, 29500).items():
        patch.setenv(name, value)


def resolve(argv: list[str]) -> tuple[Recipe, DeepSpeedConfig, RunFolder]:
    """What train.py makes of a command line before it joins the other ranks."""
    recipe, deepspeed, run, _ = read_command(argv)
    check_design(recipe)
    return recipe, deepspeed, run


def command(folder: Path, *options: str) -> list[str]:
    files = ["--config", str(folder / "recipe.yaml"), "--deepspeed_config", str(DS_CONFIG)]
    return [*files, "--run_dir", str(folder / "run"), *options]


def refusal(argv: list[str]) -> str:
    """The sentence with which a command line is refused: one line."""
    with pytest.raises(UserError) as caught:
        resolve(argv)
    message = str(caught.value)
    assert "\n" not in message
    return message
