"""The sentence for every mistake in a recipe or on the command line."""

import re
from pathlib import Path

import pytest

from tests.training.command_lines import DS_CONFIG, ROOT, command, recipe_folder, refusal


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return recipe_folder(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: {n_layre: 2}", ["'model.n_layre'", "recipe.yaml", "nearest", "'model.n_layer'"]),
        ("modle: {n_layer: 2}", ["'modle'", "recipe.yaml", "nearest", "'model'"]),
        ("train: {vall_every: 5}", ["'train.vall_every'", "'train.val_every'"]),
        ("model: {n_layer: two}", ["model.n_layer", "'two'", "an integer"]),
        ("model: {n_layer: 2.0}", ["model.n_layer", "'2.0'", "an integer"]),
        ("model: {n_layer: true}", ["model.n_layer", "'true'", "an integer"]),
        ("model: {n_layer: null}", ["model.n_layer", "'null'", "an integer"]),
        ("model: {n_layer: [2]}", ["model.n_layer", "'[2]'", "an integer"]),
        ("model: {n_layer: 'two\n\n  lines'}", ["model.n_layer", "lines", "an integer"]),
        ("model: {dropout: none}", ["model.dropout", "'none'", "a number"]),
        ("model: {bias: 2}", ["model.bias", "'2'", "true or false"]),
        ("schedule: {shape: linear}", ["schedule.shape", "'linear'", "cosine, wsd"]),
        ("schedule: {steps: 1.5}", ["schedule.steps", "'1.5'", "an integer or null"]),
        ("eval: {limit: all}", ["eval.limit", "'all'", "an integer or null"]),
        ("eval: {tasks: piqa}", ["eval.tasks", "'piqa'", "a list such as [a, b]"]),
        ("eval: {tasks: [[piqa]]}", ["eval.tasks", "'[[piqa]]'", "a list such as [a, b]"]),
        ("eval: {tasks: [1]}", ["no task '1'"]),
        ("eval: {tasks: [piqua]}", ["'piqua'", "'piqa'"]),
        ("model: {variant: rmsnrom}", ["model.variant", "'rmsnrom'", "mean 'rmsnorm'", "rmsnorm_post"]),
        ("model: {preset: gpt2_medum}", ["model.preset", "'gpt2_medum'", "'gpt2_medium'", "gpt2_xl"]),
        ("model: {preset: 3}", ["model.preset", "'3'", "gpt2_xl"]),
        ("model: {norm: rmsnrom}\nschedule: {warmup: 1}", ["model.norm", "'rmsnrom'", "'rmsnorm'"]),
        ("model: {n_embd: 65}", ["model.n_embd", "65", "model.n_head"]),
        ("model: {vocab_size: 50256}\nschedule: {warmup: 1}", ["model.vocab_size", "50256", "50257"]),
        ("train: {steps: 0}", ["train.steps", "0", "at least 1"]),
        ("data: {lanes: 0}", ["data.lanes", "0", "at least 1"]),
        ("train: {steps: 20}\nschedule: {warmup: 20}", ["schedule.steps", "schedule.warmup"]),
        ("model: 3", ["recipe.yaml", "'model'", "3", "mapping"]),
        ("model:", ["recipe.yaml", "'model'", "empty", "mapping"]),
        ("- model", ["recipe.yaml", "no sections", "mapping"]),
        ("model: {n_layer: 2", ["recipe.yaml", "not valid YAML", "line 1"]),
        ("model: {n_layer: 2}\ntrain: }", ["recipe.yaml", "not valid YAML", "line 2"]),
    ],
)  # fmt: skip
def test_a_mistake_in_the_recipe_gets_one_sentence(folder: Path, text: str, parts: list[str]) -> None:
    (folder / "recipe.yaml").write_text(text)
    message = refusal(command(folder))
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--model.n_layre", "2"], ["'model.n_layre'", "the command line", "nearest", "'model.n_layer'"]),
        (["--modle.n_layer=2"], ["'modle.n_layer'", "the command line", "'model.n_layer'"]),
        (["--deepspeed", "x"], ["'deepspeed'", "'deepspeed_config'"]),
        (["--model", "other.yaml"], ["'model'", "the command line"]),
        (["--model.n_layer"], ["--model.n_layer has no value", "--model.n_layer VALUE"]),
        (["--model.n_layer", "--model.n_head", "2"], ["--model.n_layer has no value"]),
        (["--model.n_layer="], ["model.n_layer", "''", "an integer"]),
        (["rmsnorm"], ["'rmsnorm'", "belongs to no option", "--key value"]),
        (["-n", "2"], ["'-n'", "belongs to no option"]),
        (["--model.n_layer", "two"], ["model.n_layer", "'two'", "an integer"]),
        (["--model.n_layer", "-2"], ["model.n_layer", "-2", "at least 1"]),
        (["--model.dropout", "a lot"], ["model.dropout", "'a lot'", "a number"]),
        (["--model.bias", "maybe"], ["model.bias", "'maybe'", "true or false"]),
        (["--schedule.shape", "cosin"], ["schedule.shape", "'cosin'", "cosine, wsd"]),
        (["--eval.limit", "few"], ["eval.limit", "'few'", "an integer or null"]),
        (["--eval.tasks", "piqa,wikitext"], ["eval.tasks", "'piqa,wikitext'", "[a, b]"]),
        (["--model.variant", "vanila"], ["model.variant", "'vanila'", "'vanilla'"]),
        (["--ds.optimizer.params.lr"], ["--ds.optimizer.params.lr has no value", "lr VALUE"]),
        (["--ds.optimizer.params.lr="], ["--ds.optimizer.params.lr has no value"]),
        (["--ds.optimizer.params.lr", "--ds.bf16.enabled", "true"], ["params.lr has no value"]),
        (["--ds.optimizer.params.rl", "1"], ["'ds.optimizer.params.rl'", "'ds.optimizer.params.lr'"]),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_gets_one_sentence(
    folder: Path, options: list[str], parts: list[str]
) -> None:
    message = refusal(command(folder, *options))
    assert [part for part in parts if part not in message] == [], message


def test_a_missing_file_gets_the_nearest_name_of_its_kind(folder: Path) -> None:
    (folder / "recipe.json").touch()
    files = {"--config": str(folder / "recipes.yaml"), "--deepspeed_config": str(DS_CONFIG)}
    message = refusal([word for pair in files.items() for word in pair])
    assert f"--config is '{folder}/recipes.yaml'" in message
    assert f"did you mean '{folder}/recipe.yaml'" in message
    files = {"--config": str(folder / "recipe.yaml"), "--deepspeed_config": str(DS_CONFIG)[:-6] + ".json"}
    message = refusal([word for pair in files.items() for word in pair])
    assert "--deepspeed_config is" in message and f"did you mean '{DS_CONFIG}'" in message
    message = refusal(["--config", "no/such/folder/recipe.yaml", "--deepspeed_config", str(DS_CONFIG)])
    assert message == "--config is 'no/such/folder/recipe.yaml', but there is no such file"


@pytest.mark.parametrize("missing", ["--config", "--deepspeed_config"])
def test_both_files_must_be_given(folder: Path, missing: str) -> None:
    argv = command(folder)
    position = argv.index(missing)
    message = refusal(argv[:position] + argv[position + 2 :])
    assert message.startswith(f"{missing} is missing")
    for file in re.findall(r"\S+\.(?:yaml|json)", message):  # the example in the sentence can be run
        assert (ROOT / file).is_file()
