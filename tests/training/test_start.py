"""What a run may begin from: the same shape and the same design, and a sentence for anything else."""

import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from model import GPT, GPTConfig, to_hf
from model.errors import UserError
from tests.eval.tiny_runs import write_manifest
from tests.tiny import TINY
from training.config.commands import TRAIN, read_command
from training.engine.start import check_start
from training.engine.weights import fingerprint, load_weights
from training.explain import explanation

ROOT = Path(__file__).parents[2]
NORM = """
import torch
from torch import nn


class Tilted(nn.Module):
    def __init__(self, ndim, bias=True, slope=1.0):
        super().__init__()
        self.weight, self.slope = nn.Parameter(torch.ones(ndim)), slope

    def forward(self, x):
        return self.slope * self.weight * x / (1 + x.abs().mean(-1, keepdim=True))
"""
SHAPE = GPTConfig(**TINY)


def check(source: Path, config: GPTConfig, run_dir: Path = Path("nowhere"), tokenizer: str = "gpt2") -> None:
    train, data = SimpleNamespace(init_from=str(source)), SimpleNamespace(tokenizer=tokenizer)
    recipe: Any = SimpleNamespace(model=config, train=train, data=data)
    folder: Any = SimpleNamespace(path=run_dir, restarts=False)
    check_start(recipe, folder)


def make_run(folder: Path, config: GPTConfig, design: str | None = None) -> Path:
    """A run with a complete checkpoint of step 1, as far as its configs tell."""
    (folder / "checkpoints" / "step_00000001").mkdir(parents=True)
    (folder / "checkpoints" / "step_00000001" / "model.pt").write_bytes(b"weights")
    write_manifest(folder / "checkpoints" / "step_00000001")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": asdict(config)}))
    if design:
        (folder / "designs").mkdir()
        (folder / "designs" / "norm.py").write_text(design)
    return folder


def given_on_the_command_line(words: list[str]) -> GPTConfig:
    """The model that train.py reads from these words, without a recipe."""
    sections, _ = TRAIN.build_sections({}, TRAIN.read(words).keys)
    return sections["model"]


def test_following_the_sentences_leads_to_the_sources_model(tmp_path: Path) -> None:
    wanted = replace(SHAPE, norm_options={"eps": 1e-6}, mlp="gelu", tied=False)
    to_hf(GPT(wanted), tmp_path / "published", eot=None)
    words: list[str] = ["--model.n_head", "16", "--model.norm", "rmsnorm"]
    for _ in range(20):
        try:
            check(tmp_path / "published", given_on_the_command_line(words))
            break
        except UserError as error:
            found = re.search(r"give (--model\.\w+ .*), or another train.init_from", str(error))
            assert found, error
            words += shlex.split(found[1])
    assert given_on_the_command_line(words) == wanted


def test_the_explanation_is_of_the_given_weights(tmp_path: Path) -> None:
    gpt = GPT(replace(SHAPE, vocab_size=257))
    with torch.no_grad():
        gpt.transformer["wpe"].weight.fill_(0.25)
    to_hf(gpt, tmp_path / "published", eot=None)
    words = ["--config", f"{ROOT}/recipes/sample.yaml"]
    words += ["--deepspeed_config", f"{ROOT}/ds_configs/zero0_fp32.json"]
    words += [f"--model.{key}={value}" for key, value in (TINY | {"vocab_size": 257}).items()]
    words += ["--data.tokenizer", "bytes", "--train.init_from", str(tmp_path / "published")]
    recipe, ds, _, overrides = read_command([*words, "--run_dir", str(tmp_path / "run")])
    lines = explanation(recipe, ds, overrides).splitlines()
    assert f"  those of {tmp_path / 'published'}" in lines
    assert [line.split()[-4] for line in lines if line.startswith("  wpe.weight")] == ["0.25"]


def test_what_weights_do_not_depend_on_may_differ(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", SHAPE)
    check(run, replace(SHAPE, dropout=0.2, z_loss=1e-4))
    check(run / "checkpoints" / "step_00000001", SHAPE)
    with pytest.raises(UserError) as refused:
        check(run, replace(SHAPE, vocab_size=128))
    assert str(refused.value) == (
        f"train.init_from is {run}, a model with model.vocab_size 64, but this run has 128: give "
        "--model.vocab_size 64, or another train.init_from"
    )
    with pytest.raises(UserError, match=r"a run with data.tokenizer gpt2, but this run has bytes: give"):
        check(run, SHAPE, tokenizer="bytes")


def test_a_design_from_a_file_must_have_the_same_code(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("# another comment\n" + NORM)
    of_run = replace(SHAPE, norm="/gone/tilted.py:Tilted")
    run = make_run(tmp_path / "run", of_run, NORM)
    config = replace(SHAPE, norm=f"{file}:Tilted")
    exported = to_hf(GPT(config), tmp_path / "exported", eot=None)
    for source in (run, exported):
        check(source, config)
    file.write_text(NORM.replace("1 + x", "2 + x"))
    for source, design in ((run, "designs/norm.py"), (exported, "design_norm.py")):
        with pytest.raises(UserError, match=rf"model.norm {source}/{design}:Tilted, but this run has {file}"):
            check(source, config)
        check(source, replace(SHAPE, norm=f"{source / design}:Tilted"))


def test_what_is_no_source_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    llama = tmp_path / "llama"
    llama.mkdir()
    (llama / "config.json").write_text('{"model_type": "llama"}')
    begun = make_run(tmp_path / "begun", SHAPE)
    (begun / "checkpoints" / "step_00000001" / "manifest.json").unlink()
    for source, sentence in (
        (tmp_path / "none", "there is no run folder"),
        (tmp_path / "empty", "is not a run folder: it holds no recipe.yaml"),
        (llama, "is no GPT-2: its model_type is 'llama'"),
        (begun, "has no checkpoint that is whole"),
    ):
        with pytest.raises(UserError, match=f"train.init_from is {source}: .*{sentence}"):
            check(source, SHAPE)


def test_a_run_with_a_checkpoint_does_not_look_at_the_source(tmp_path: Path) -> None:
    check(tmp_path / "gone", SHAPE, run_dir=make_run(tmp_path / "run", SHAPE))


def test_a_broken_file_of_weights_is_one_sentence(tmp_path: Path) -> None:
    for name, config in (("gpt2", SHAPE), ("own", replace(SHAPE, norm="rmsnorm"))):
        folder = to_hf(GPT(config), tmp_path / name, eot=None)
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(UserError, match=f"{folder} cannot be read: "):
            load_weights(folder)
    with pytest.raises(UserError, match="is one model in Hugging Face's form: it has no step 3"):
        load_weights(tmp_path / "own", step=3)


def test_a_fingerprint_follows_names_shapes_and_values() -> None:
    weights = {"a": torch.arange(6.0), "b": torch.tensor(0.5), "c": torch.ones(2, dtype=torch.complex64)}
    same = {name: weights[name].clone() for name in reversed(weights)}
    assert fingerprint(same) == fingerprint(weights)
    others = [weights | {"a": weights["a"].view(2, 3)}, weights | {"b": torch.tensor(0.25)}]
    others.append({"z" if name == "a" else name: value for name, value in weights.items()})
    assert len({fingerprint(of) for of in (weights, *others)}) == 4
