"""A refusal comes before anything that takes seconds to import, and is one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = ["--config", "recipes/sample.yaml", "--deepspeed_config", "ds_configs/zero1_bf16_cpu.json"]
TRAIN, PLAN, PREFLIGHT = ["train.py", *FILES], ["scripts/plan.py", *FILES], ["model.preflight"]
JUDGE = ["scripts/judge.py", "rmsnorm"]
STUDY = ["scripts/study.py", "recipes/studies/sample.yaml"]
HEAVY = {"torch", "deepspeed", "datasets", "wandb", "transformers", "lm_eval", "pandas", "pydantic"}
RUN = """
import runpy, sys
command, sys.argv = sys.argv[1], sys.argv[1:]
run = runpy.run_path if command.endswith(".py") else runpy.run_module
try:
    run(command, run_name="__main__")
finally:
    print("imported:", *sys.modules, file=sys.__stdout__)
"""


def run(command: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout, and stderr of a command that imports nothing heavy."""
    result = subprocess.run(
        [sys.executable, "-c", RUN, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    printed, _, imported = result.stdout.rpartition("imported:")
    assert HEAVY.isdisjoint(imported.split()), HEAVY & {*imported.split()}
    return result.returncode, printed, result.stderr


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ([*TRAIN, "--model.n_layr", "3"], "unknown key 'model.n_layr' in the command line; the nearest"),
        ([*TRAIN, "--model.n_layer", "three"], "model.n_layer is 'three', but it must be an integer"),
        ([*TRAIN, "--ds.train_batch_size", "7"], "do not divide: train_batch_size 7"),
        ([*TRAIN, "--ds.zero_optimization.stage", "7"], "'zero_optimization.stage' in"),
        ([*TRAIN, "--model.vocab_size", "7"], "model.vocab_size is 7: data.tokenizer gpt2 needs"),
        ([*TRAIN, "--eval.tasks", "[piqua]"], "there is no task 'piqua' (did you mean 'piqa'?)"),
        (["train.py", *FILES[:2], "--deepspeed_config", "no.json"], "--deepspeed_config is 'no.json'"),
        (["train.py"], "--config is missing"),
        ([*PLAN, "--gpus", "8xH900"], "--gpus is '8xH900'"),
        ([*PLAN, "--gpus", "8xH100", "--model.variant", "rmsnrm"], "did you mean 'rmsnorm'?"),
        ([*JUDGE, "--seeds", "none"], "--seeds is 'none', but it must be a whole number"),
        ([*JUDGE, "--model.n_layr", "3"], "unknown key 'model.n_layr'"),
        (["scripts/study.py", "recipes/studies/sampel.yaml"], "did you mean 'recipes/studies/sample.yaml'?"),
        ([*STUDY, "--sequentail"], "unknown key 'sequentail'"),
        (["model.catalogue", "rmsnrm"], "there is no variant 'rmsnrm' (did you mean 'rmsnorm'?)"),
        ([*PREFLIGHT, "--model.n_layr", "3"], "unknown key 'model.n_layr'"),
        ([*PREFLIGHT, "--model.n_head", "3"], "does not divide"),
    ],
)
def test_a_refusal_is_one_sentence_before_torch_is_imported(command: list[str], sentence: str) -> None:
    status, printed, errors = run(command)
    assert (status, printed) == (2, ""), errors
    assert errors.startswith("error: ") and errors.count("\n") == 1 and sentence in errors
