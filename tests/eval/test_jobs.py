"""Evaluation jobs on a run folder: the checkpoint's weights, the results' files, and what is refused."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from data import open_tokenizer
from eval.jobs import run_tasks
from eval.result_files import check_limit, stored_results, write_results
from eval.scoring.lm import NormLabLM
from eval.tasks import load_tasks
from model import GPT, GPTConfig
from model.errors import UserError
from tests.eval.tiny_runs import write_manifest
from training.checkpoints.found import find_checkpoint
from training.config.evaluation import EvalConfig
from training.engine.weights import load_model
from training.run.tokenizer import read_tokenizer

ROOT = Path(__file__).parents[2]
SHAPE = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, norm="rmsnorm")
TRAIN = """
import sys
import torch, deepspeed
from deepspeed.utils import safe_get_full_fp32_param
from model import GPT, GPTConfig

folder = sys.argv[1]
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a minute of compiling, for several ranks
deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
for step, stage, bf16 in ((1, 1, True), (2, 0, False)):
    gpt = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, norm="rmsnorm"))
    config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": stage},
              "bf16": {"enabled": bf16}, "zero_allow_untested_optimizer": True,
              "data_types": {"grad_accum_dtype": "fp32"}}
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=gpt, optimizer=optimizer, config=config)
    tokens = torch.randint(50257, (2, 64))
    engine.backward(engine(tokens, tokens)[1])
    engine.step()
    engine.save_checkpoint(folder, tag=f"step_{step:08d}")
    full = safe_get_full_fp32_param if stage else lambda parameter: parameter.detach()
    torch.save({name: full(p).clone() for name, p in gpt.named_parameters()}, f"{folder}/weights_{step}.pt")
"""


def no_bar(title, **options):
    return tqdm(disable=True)


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run's DeepSpeed checkpoints: step 1 as zero1_bf16.json writes it, step 2 in fp32 without ZeRO."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    (run / "checkpoints").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    one_rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    done = python("-c", TRAIN, run / "checkpoints", DS_ACCELERATOR="cpu", MASTER_PORT=port, **one_rank)
    assert done.returncode == 0, done.stderr
    for folder in (run / "checkpoints").glob("step_*"):
        write_manifest(folder)
    recipe = {"model": asdict(SHAPE), "eval": {"tasks": ["lambada_openai"], "data_dir": None, "limit": None}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    summary = {"status": "finished", "variant": "rmsnorm", "precision": "bf16", "step": 2, "tokens": 256}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "tiny")


@pytest.fixture(scope="module")
def eval_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    sets = {
        "lambada_openai/lambada_test.jsonl": [
            {"text": f"The ship was late and {n} men on the quay cursed the ship"} for n in range(5)],
        "wikitext2/test_document_level.jsonl": [
            {"page": " = Tides = \n \n The tide turns twice a day . " * n} for n in (1, 4, 9)],
        "piqa/validation.jsonl": [
            {"goal": f"dry {n} sails", "sol1": "hang them up", "sol2": "sink them all", "label": n % 2}
            for n in range(4)],
    }  # fmt: skip
    for name, items in sets.items():
        file = folder / name
        file.parent.mkdir()
        file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


@pytest.fixture(scope="module")
def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(SHAPE)


def score(gpt: GPT, run: Path, eval_data: Path, *names: str, limit: int | None = None) -> dict:
    results = run_tasks(gpt, open_tokenizer("gpt2"), load_tasks(names, eval_data), limit=limit, bar=no_bar)
    file = write_results(run, 1, results, EvalConfig(data_dir=str(eval_data)))
    return json.loads(file.read_text())


@pytest.mark.parametrize("step", [1, 2])
def test_the_model_has_the_optimizers_fp32_weights(run_dir, step):
    gpt, loaded = load_model(run_dir, step)
    expected = torch.load(run_dir / "checkpoints" / f"weights_{step}.pt")
    assert loaded == step
    assert not gpt.training
    assert gpt.lm_head.weight is gpt.transformer.wte.weight
    for name, parameter in gpt.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, expected[name]), name
    if step == 1:
        assert not torch.equal(gpt.lm_head.weight, gpt.lm_head.weight.bfloat16().float())


def test_the_last_complete_checkpoint_is_taken(run_dir):
    folder = run_dir / "checkpoints"
    assert find_checkpoint(run_dir) == (folder / "step_00000002", 2)
    with open(run_dir / "checkpoints" / "step_00000002" / "mp_rank_00_model_states.pt", "r+b") as file:
        file.truncate(100)
    assert find_checkpoint(run_dir) == (folder / "step_00000001", 1)
    (run_dir / "checkpoints" / "step_00000001" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"tiny has no checkpoint that is whole: step 2 is damaged"):
        find_checkpoint(run_dir)


def test_results_are_those_of_lm_eval_and_a_stamp(gpt, run_dir, eval_data):
    ours = score(gpt, run_dir, eval_data, "lambada_openai", "wikitext")
    tasks = list(load_tasks(["lambada_openai", "wikitext"], eval_data).values())
    lm = NormLabLM(gpt, open_tokenizer("gpt2"))
    theirs = simple_evaluate(lm, tasks=tasks, task_manager=TaskManager(include_defaults=False))
    assert theirs.keys() - {"samples"} <= ours.keys()
    assert ours.keys() - theirs.keys() >= {"task_hashes", "model_name", "total_evaluation_time_seconds"}
    for key in ("versions", "n-shot", "n-samples", "higher_is_better", "group_subtasks"):
        assert ours[key] == theirs[key]
    for task, scores in theirs["results"].items():
        values = {key: value for key, value in scores.items() if isinstance(value, float)}
        # The standard error of a perplexity is bootstrapped, from fewer resamples than lm-eval's default.
        assert {key: ours["results"][task][key] for key in values} == pytest.approx(values, rel=0.1)
        assert ours["results"][task].keys() == scores.keys()
    sources = dict.fromkeys(theirs["results"], str(eval_data))
    stamp = {"variant": "rmsnorm", "precision": "bf16", "step": 1, "tokens": 128, "limit": None}
    unset = dict.fromkeys(theirs["results"])
    assert ours["normlab"] == stamp | {"eval_data": sources, "num_fewshot": unset, "definitions": unset}


def test_items_add_up_to_the_metrics(gpt, run_dir, eval_data):
    results = score(gpt, run_dir, eval_data, "wikitext", "lambada_openai", "piqa")["results"]
    items = pd.read_parquet(run_dir / "eval" / "step_00000001" / "per_item.parquet")
    assert items["value"].dtype == "float64"
    documents = items.groupby("task")["doc_id"].nunique()
    assert documents.to_dict() == {"lambada_openai": 5, "piqa": 4, "wikitext": 3}
    for (task, metric), of_metric in items.groupby(["task", "metric"]):
        mean = (of_metric["value"] * of_metric["weight"]).sum() / of_metric["weight"].sum()
        if metric.endswith("perplexity"):
            mean = math.exp(-mean)
        elif metric == "bits_per_byte":
            mean = -mean / math.log(2)
        assert results[task][f"{metric},none"] == pytest.approx(mean), (task, metric)


def test_a_second_job_adds_its_tasks(gpt, run_dir, eval_data):
    first = score(gpt, run_dir, eval_data, "wikitext", "piqa")
    second = score(gpt, run_dir, eval_data, "lambada_openai", "piqa")
    assert second["results"].keys() == {"wikitext", "piqa", "lambada_openai"}
    assert second["results"]["wikitext"] == first["results"]["wikitext"]
    for key in ("configs", "versions", "n-shot", "n-samples", "higher_is_better", "task_hashes"):
        assert second[key].keys() == second["results"].keys()
    folder = run_dir / "eval" / "step_00000001"
    items = pd.read_parquet(folder / "per_item.parquet")
    rows = items["task"].value_counts()
    assert rows.to_dict() == {"lambada_openai": 2 * 5, "piqa": 2 * 4, "wikitext": 3 * 3}
    assert sorted(file.name for file in folder.iterdir()) == ["per_item.parquet", "results.json"]


def test_only_results_over_the_same_items_count_as_there(gpt, run_dir, eval_data):
    asked = EvalConfig(data_dir=str(eval_data))
    assert stored_results(run_dir, 1, asked) == {"results": {}}
    written = score(gpt, run_dir, eval_data, "piqa")
    assert stored_results(run_dir, 1, asked)["results"] == written["results"]
    assert stored_results(run_dir, 1, replace(asked, limit=3))["results"] == {}
    assert stored_results(run_dir, 1, EvalConfig())["results"] == {}
    assert stored_results(run_dir, 1, replace(asked, num_fewshot=2))["results"] == {}


def test_results_over_all_items_replace_a_quick_look_and_not_the_other_way(gpt, run_dir, eval_data):
    check_limit(run_dir, 1, 2)
    score(gpt, run_dir, eval_data, "wikitext", limit=2)
    check_limit(run_dir, 1, 2)
    check_limit(run_dir, 1, None)
    assert score(gpt, run_dir, eval_data, "piqa")["results"].keys() == {"piqa"}
    with pytest.raises(UserError, match=r"results\.json holds results over all items, which a limit of 2"):
        check_limit(run_dir, 1, 2)


def test_the_command_scores_the_last_checkpoint(run_dir, eval_data):
    done = python("-m", "eval", run_dir, "--eval_data", eval_data, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "lambada_openai   acc" in done.stderr
    file = run_dir / "eval" / "step_00000002" / "results.json"
    assert done.stderr.splitlines()[-1] == f"results in {file}"
    assert json.loads(file.read_text())["normlab"]["step"] == 2
    assert not (file.parent / "answers").exists()

    done = python("-m", "eval", run_dir, "--eval_data", eval_data, "--tasks", "piqa", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text())["results"].keys() == {"lambada_openai", "piqa"}

    done = python("-m", "eval", run_dir, "--eval_data", eval_data, "--limit", "2")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {file} holds results over all items")

    done = python("-m", "eval", run_dir, HF_HUB_OFFLINE="1", HF_HOME=str(run_dir / "empty"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: task 'lambada_openai' cannot be had from the ")


def test_the_command_reads_text_with_the_runs_tokenizer(tmp_path, eval_data):
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=257))
    checkpoint = tmp_path / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    torch.save({"module": gpt.state_dict()}, checkpoint / "mp_rank_00_model_states.pt")
    write_manifest(checkpoint)
    recipe = {"model": asdict(gpt.config), "data": {"tokenizer": "bytes"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = python("-m", "eval", tmp_path, "--eval_data", eval_data, "--tasks", "wikitext", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "eval" / "step_00000001" / "results.json").read_text())
    assert results["config"]["tokenizer"] == "bytes"
    here = run_tasks(gpt, open_tokenizer("bytes"), load_tasks(["wikitext"], eval_data), bar=no_bar)
    score = here["results"]["wikitext"]["bits_per_byte,none"]
    assert results["results"]["wikitext"]["bits_per_byte,none"] == pytest.approx(score, rel=1e-6)


def test_a_run_from_before_there_was_a_choice_has_gpt2s_tokenizer(run_dir):
    assert read_tokenizer(run_dir) is open_tokenizer("gpt2")
    recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text()) | {"data": {"source": "sample"}}
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert read_tokenizer(run_dir) is open_tokenizer("gpt2")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{run}/none"], "there is no run folder {run}/none"),
        (["{run}/checkpoints"], "{run}/checkpoints is not a run folder: it holds no recipe.yaml"),
        (["{run}", "--tasks", "piqua"], "there is no task 'piqua' (did you mean 'piqa'?); known are wiki"),
        (["{run}", "--limit", "0"], "eval.limit is 0, but it must be an integer of at least 1 or null"),
        (["{run}", "--step", "7"], "{run} has no complete checkpoint of step 7; the steps there are 1, 2"),
        (["{run}", "--eval_data", "{run}"], "task 'lambada_openai' reads {run}/lambada_openai/lambada"),
    ],
)
def test_a_wrong_command_is_one_sentence(trained, arguments, sentence):
    done = python("-m", "eval", *[argument.format(run=trained) for argument in arguments])
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: " + sentence.format(run=trained))
    assert not (trained / "logs").exists()
