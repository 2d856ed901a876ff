"""The command line and the recipe: who wins, what is filled in, and what the help text tells."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.command_lines import (
    DS_CONFIG,
    RECIPE,
    be_rank_0,
    command,
    recipe_folder,
    refusal,
    resolve,
)
from training.config import Recipe
from training.config.recipe import SECTIONS
from training.run.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
# Layers, heads, width: Radford et al. 2019, table 2, with the heads of the published weights.
PUBLISHED_SHAPES = {
    "gpt2_small": (12, 12, 768),
    "gpt2_medium": (24, 16, 1024),
    "gpt2_large": (36, 20, 1280),
    "gpt2_xl": (48, 25, 1600),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return recipe_folder(tmp_path, monkeypatch)


def recipe_of(folder: Path, text: str, *options: str) -> Recipe:
    (folder / "recipe.yaml").write_text(
        f"{text}\n" if "schedule" in text else f"{text}\nschedule: {{warmup: 1}}"
    )
    return resolve(command(folder, *options))[0]


def test_the_command_line_beats_the_recipe_and_that_the_defaults(folder: Path) -> None:
    recipe = recipe_of(folder, "model: {n_layer: 3, n_head: 2, n_embd: 64}", "--model.n_head", "4")
    assert (recipe.model.n_layer, recipe.model.n_head, recipe.model.n_embd) == (3, 4, 64)
    assert recipe.model.block_size == SECTIONS["model"]().block_size == 1024


@pytest.mark.parametrize("first", ["options", "files"])
@pytest.mark.parametrize(
    "written", [["--model.n_layer", "3"], ["--model.n_layer=3"]], ids=["space", "equals"]
)
def test_an_option_is_read_wherever_it_stands_and_either_way_it_is_written(
    folder: Path, first: str, written: list[str]
) -> None:
    files = command(folder)
    argv = [*written, *files] if first == "options" else [*files, *written]
    assert resolve(argv)[0].model.n_layer == 3


def test_the_last_of_two_equal_options_wins(folder: Path) -> None:
    options = ["--train.init_seed", "5", "--ds.gradient_clipping=2"]
    options += ["--train.init_seed=6", "--ds.gradient_clipping", "0.5"]
    recipe, ds_config, _ = resolve(command(folder, *options))
    assert recipe.train.init_seed == 6 and ds_config.raw["gradient_clipping"] == 0.5


@pytest.mark.parametrize(
    ("model", "options", "norm_and_block"),
    [
        ("variant: rmsnorm_post", [], ("rmsnorm", "sandwich")),
        ("norm: layernorm, variant: rmsnorm_post", [], ("layernorm", "sandwich")),
        ("norm: rmsnorm, block: post", ["--model.variant", "vanilla"], ("layernorm", "pre")),
        ("variant: rmsnorm, norm: layernorm", ["--model.variant=rmsnorm_parallel"], ("rmsnorm", "parallel")),
        ("variant: rmsnorm_post", ["--model.norm", "layernorm"], ("layernorm", "sandwich")),
        ("block: post", ["--model.variant", "rmsnorm", "--model.norm", "layernorm"], ("layernorm", "pre")),
        ("block: post", ["--model.norm", "layernorm", "--model.variant", "rmsnorm"], ("layernorm", "pre")),
    ],
)  # fmt: skip
def test_a_variant_stands_for_its_parts_at_the_level_where_it_is_given(
    folder: Path, model: str, options: list[str], norm_and_block: tuple[str, str]
) -> None:
    recipe = recipe_of(folder, f"model: {{{model}}}", *options)
    assert (recipe.model.norm, recipe.model.block) == norm_and_block


@pytest.mark.parametrize(
    ("model", "options", "norm", "norm_options"),
    [
        ("norm: rmsnorm, norm_options: {eps: 1.0e-6}", [], "rmsnorm", {"eps": 1e-6}),
        ("norm: rmsnorm", ["--model.norm_options.eps", "1e-6"], "rmsnorm", {"eps": 1e-6}),
        (
            "norm: rmsnorm, norm_options: {eps: 1.0e-6}",
            ["--model.norm_options.gain=none"],
            "rmsnorm",
            {"eps": 1e-6, "gain": "none"},
        ),
        ("norm: rmsnorm, norm_options: {gain: none}", ["--model.norm", "layernorm"], "layernorm", {}),
        ("norm: rmsnorm, norm_options: {gain: none}", ["--model.norm=rmsnorm"], "rmsnorm", {"gain": "none"}),
        ("norm: rmsnorm, norm_options: {gain: none}", ["--model.variant=vanilla"], "layernorm", {}),
        ("variant: rmsnorm", ['--model.norm_options={"eps": 0.1}'], "rmsnorm", {"eps": 0.1}),
    ],
)
def test_options_go_with_the_design_that_they_were_given_with(
    folder: Path, model: str, options: list[str], norm: str, norm_options: dict[str, Any]
) -> None:
    recipe = recipe_of(folder, f"model: {{{model}}}", *options)
    assert (recipe.model.norm, recipe.model.norm_options) == (norm, norm_options)


def test_a_candidate_file_is_a_variant_with_gpt2s_other_parts(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "import torch.nn as nn\nclass Block(nn.Module):\n    def __init__(self, config):\n"
        "        super().__init__()\n        self.mlp = MLP(config)\n"
        "    def forward(self, x):\n        return x + self.mlp(x)\nwhile True: pass\n"
    )
    recipe = recipe_of(folder, "model: {norm: rmsnorm}", "--model.variant", str(folder / "mine.py"))
    assert (recipe.model.norm, recipe.model.block) == ("layernorm", f"{folder / 'mine.py'}:Block")
    assert recipe.variant == "layernorm+mine"


@pytest.mark.parametrize(
    ("model", "options", "shape"),
    [
        ("preset: gpt2_medium", [], (24, 16, 1024)),
        ("n_layer: 2, preset: gpt2_medium", [], (2, 16, 1024)),
        ("n_layer: 2, n_head: 2, n_embd: 64", ["--model.preset", "gpt2_xl"], (48, 25, 1600)),
        ("preset: gpt2_medium", ["--model.n_layer=6", "--model.preset=gpt2_large"], (6, 20, 1280)),
    ],
)
def test_a_preset_stands_for_its_shape_at_the_level_where_it_is_given(
    folder: Path, model: str, options: list[str], shape: tuple[int, int, int]
) -> None:
    recipe = recipe_of(folder, f"model: {{{model}}}", *options)
    assert (recipe.model.n_layer, recipe.model.n_head, recipe.model.n_embd) == shape


def test_the_schedule_is_as_long_as_the_run_unless_its_length_is_given(folder: Path) -> None:
    assert recipe_of(folder, "train: {steps: 70}").schedule.steps == 70
    assert recipe_of(folder, "train: {steps: 70}", "--train.steps", "90").schedule.steps == 90
    recipe = recipe_of(folder, "train: {steps: 70}\nschedule: {steps: 300, warmup: 5}", "--train.steps=90")
    assert (recipe.train.steps, recipe.schedule.steps) == (90, 300)
    text = "train: {steps: 70}\nschedule: {steps: 300, warmup: 5}"
    assert recipe_of(folder, text, "--schedule.steps", "null").schedule.steps == 70


@pytest.mark.parametrize(
    ("section", "key", "text", "value"),
    [
        ("model", "bias", "false", False),
        ("model", "dropout", "0.1", 0.1),
        ("schedule", "floor", "0", 0.0),
        ("schedule", "shape", "wsd", "wsd"),
        ("eval", "tasks", "[piqa, wikitext]", ("piqa", "wikitext")),
        ("eval", "limit", "30", 30),
        ("eval", "limit", "null", None),
        ("tracking", "name", "17", "17"),
        ("tracking", "name", "2026-01-31", "2026-01-31"),
        ("tracking", "name", "an = sign: [and more", "an = sign: [and more"),
        ("tracking", "tags", '[a, "3"]', ("a", "3")),
        ("data", "subset", "sample-10BT", "sample-10BT"),
    ],
)
def test_a_value_is_the_same_in_the_recipe_and_on_the_command_line(
    folder: Path, section: str, key: str, text: str, value: Any
) -> None:
    in_yaml = f'"{text}"' if ": " in text else text
    schedule = "" if section == "schedule" else "schedule: {warmup: 1}"
    extra = ", warmup: 1" if section == "schedule" else ""
    (folder / "recipe.yaml").write_text(f"{section}: {{{key}: {in_yaml}{extra}}}\n{schedule}")
    from_recipe = getattr(vars(resolve(command(folder))[0])[section], key)
    (folder / "recipe.yaml").write_text(RECIPE)
    from_options = getattr(vars(resolve(command(folder, f"--{section}.{key}", text))[0])[section], key)
    assert from_recipe == from_options == value
    assert type(from_recipe) is type(from_options) is type(value)


@pytest.mark.parametrize("recipe_file", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_resolves_on_two_ranks_with_its_published_shape(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_rank_0(monkeypatch, 2)
    files = ["--config", str(recipe_file), "--deepspeed_config", str(DS_CONFIG)]
    recipe, ds_config, run = resolve([*files, "--run_dir", str(tmp_path / "run")])
    assert recipe.variant == "vanilla" and recipe.schedule.steps
    assert recipe.train.steps - recipe.schedule.steps == ("climbmix" in recipe_file.stem)
    assert ds_config.train_batch_size == 576
    assert not run.path.exists()
    if recipe_file.stem.startswith("gpt2_"):
        model = recipe.model
        preset = recipe_file.stem.removesuffix("_fineweb")
        assert (model.n_layer, model.n_head, model.n_embd) == PUBLISHED_SHAPES[preset]
        assert (model.block_size, model.vocab_size, model.bias, model.dropout) == (1024, 50304, False, 0.0)


def test_there_is_a_recipe_for_each_of_gpt2s_sizes() -> None:
    fineweb = {f"{name}_fineweb" for name in PUBLISHED_SHAPES}
    others = {"sample", "proxy_bytes_deep", "proxy_prose", "protocol_climbmix", "sibling_residual_climbmix"}
    assert {path.stem for path in RECIPES} == fineweb | others


@pytest.mark.parametrize("world_size", [1, 4])
def test_the_configs_that_a_run_leaves_resolve_to_the_same_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    be_rank_0(monkeypatch, world_size)
    options = ["--model.variant", "rmsnorm_post", "--model.dropout", "1e-5", "--schedule.shape", "wsd"]
    options += ["--eval.tasks", "[piqa, hellaswag]", "--eval.limit", "null"]
    options += ["--tracking.tags", '[a, "3", "b: c"]', "--tracking.name", "[odd"]
    options += ["--ds.optimizer.params.lr", "2.5e-5", "--ds.steps_per_print", "null"]
    argv = command(folder, *options)
    recipe, ds_config, run = resolve(argv)
    assert recipe.tracking.tags == ("a", "3", "b: c") and ds_config.peak_lr == 2.5e-5
    run.path.mkdir()
    run.write_configs(vars(recipe), ds_config.raw, argv)
    run.append_metrics(kind="train", step=1, loss=1.0)
    files = [
        "--config",
        str(run.path / "recipe.yaml"),
        "--deepspeed_config",
        str(run.path / "ds_config.json"),
    ]
    again, ds_config_again, _ = resolve([*files, "--run_dir", str(run.path)])
    assert again == recipe and ds_config_again.raw == ds_config.raw
    assert resolve(argv)[0] == recipe  # and the first command line goes on in the folder


def test_a_run_folder_in_use_takes_only_what_does_not_change_its_steps(folder: Path) -> None:
    argv = command(folder, "--schedule.steps", "120")
    recipe, ds_config, run = resolve(argv)
    run.path.mkdir()
    run.write_configs(vars(recipe), ds_config.raw, argv)
    run.append_metrics(kind="train", step=1, loss=1.0)
    free = ["--train.steps", "60", "--train.val_every=7", "--eval.limit", "3", "--tracking.tags", "[late]"]
    assert resolve([*argv, *free])[0].train.steps == 60
    assert "schedule.steps = 120, but 60" in refusal(command(folder, "--train.steps", "60"))
    assert "model.norm = 'layernorm', but 'rmsnorm'" in refusal([*argv, "--model.variant", "rmsnorm"])
    assert "train.init_seed = 1, but 2" in refusal([*argv, "--train.init_seed", "2"])
    assert "data.seed = 1234, but 7" in refusal([*argv, "--data.seed", "7"])
    message = refusal([*argv, "--ds.optimizer.params.lr", "1e-4"])
    assert "ds.optimizer.params.lr = 0.0006, but 0.0001" in message and "--run_dir" in message


def test_the_run_folder_is_named_after_recipe_variant_and_seed(folder: Path) -> None:
    argv = command(folder, "--model.variant=rmsnorm", "--train.init_seed", "3")
    position = argv.index("--run_dir")
    _, _, run = resolve(argv[:position] + argv[position + 2 :])
    assert isinstance(run, RunFolder) and run.path == Path("runs/recipe_rmsnorm_seed3")


def documented(section: type) -> dict[str, str]:
    """A config's docstring as {field: its text on one line}, read without the command line's parser."""
    text = " ".join((section.__doc__ or "").split())
    fields = [field.name for field in dataclasses.fields(section)]
    starts = [text.index(f" {name}: ") for name in fields]
    assert starts == sorted(starts)
    ends = [*starts[1:], len(text)]
    return {
        name: text[start + len(f" {name}: ") : end].strip()
        for name, start, end in zip(fields, starts, ends, strict=True)
    }


def test_help_tells_every_key_with_its_meaning() -> None:
    result = subprocess.run(
        [sys.executable, "train.py", "--help"],
        cwd=ROOT, env=os.environ | {"COLUMNS": "400"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0 and "Traceback" not in result.stderr
    words = " ".join(result.stdout.split())
    for name, section in SECTIONS.items():
        for key, meaning in documented(section).items():
            assert re.search(rf"--{name}\.{key} \S+ {re.escape(meaning)}", words), f"{name}.{key}: {meaning}"
        assert f"--{name} " not in words  # a file a section cannot be given
    for option in ("--config", "--deepspeed_config", "--run_dir", "--ds.path.to.key"):
        assert re.search(rf"\s{option} \S+ \w+", words)
    assert (
        "--model.variant NAME one of `python -m model.catalogue`, or a file that defines LayerNorm" in words
    )
    assert "one of gpt2_small, gpt2_medium, gpt2_large, gpt2_xl" in words
