"""Local tasks with solved examples: as lm-eval's `hf` backend scores them, on ranks and after a kill."""

import os
import pickle
import shutil
import signal
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from data import open_tokenizer
from eval.checks.requests import check_requests
from eval.harness.tasks import group_results
from eval.jobs import run_tasks
from eval.scoring import kept
from eval.scoring.kept import Keep, KeptAnswers, model_fingerprint
from eval.scoring.lm import TOKENS_PER_BATCH
from eval.scoring.windows import TextWindows
from eval.tasks import load_tasks
from model import GPT
from tests.distributed import run_on_ranks
from tests.own_designs import SCALAR
from tests.processes import ForkedError

from .hf_backend import hf_backend, make_gpt
from .local_tasks import TASKS, write_tasks

BLOCK = """
class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.mlp = MLP(config)
    def forward(self, x):
        h = self.ln_1(x)
        return x + self.attn(h) + self.mlp(h)
"""
DESIGNS = ("vanilla", "rmsnorm", "candidate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = write_tasks(tmp_path_factory.mktemp("tasks"))
    (folder / "candidate.py").write_text(SCALAR + BLOCK)
    return folder


def model_of(design: str, folder: Path) -> GPT:
    own = f"{folder}/candidate.py"
    chosen = {
        "rmsnorm": {"norm": "rmsnorm"},
        "candidate": {"norm": f"{own}:LayerNorm", "block": f"{own}:Block"},
    }
    return make_gpt(50304, block_size=96, **chosen.get(design, {}))


def evaluated(design: str, folder: Path, keep: Path | None, said: list[str]) -> dict[str, Any]:
    """Results and samples of a design on all tasks with two solved examples, and on a text in windows."""
    gpt, tokenizer = model_of(design, folder), open_tokenizer("gpt2")
    tasks = load_tasks(TASKS, None, include_path=str(folder), num_fewshot=2)
    group = tasks.pop("mmlu_sea")
    check_requests(tasks, tokenizer, gpt.config.block_size, None)  # as the command does first
    tasks["windows"] = TextWindows("windows", (folder / "sciq_test.jsonl").read_text(), "sciq_test.jsonl")
    where = keep and Keep(keep, model_fingerprint(gpt, tokenizer), said.append)
    with patch.dict(TOKENS_PER_BATCH, cpu=300):  # several batches of each task
        results = run_tasks(gpt, tokenizer, tasks, bar=lambda _, **options: tqdm(disable=True), keep=where)
    of_group = group_results(group, results)
    return {"results": results["results"] | of_group["results"], "samples": results["samples"]}


@pytest.fixture(scope="module")
def ours(folder) -> dict[str, dict[str, Any]]:
    """By design what one process finds."""
    return {design: evaluated(design, folder, None, []) for design in DESIGNS}


@pytest.mark.parametrize("design", DESIGNS)
def test_scores_equal_the_hf_backends_on_the_export(ours, folder, tmp_path, design):
    lm = hf_backend(model_of(design, folder), tmp_path / "export")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    names = [task for task in TASKS if task != "drawn_stories"]  # which no other program draws
    theirs = simple_evaluate(lm, tasks=names, task_manager=manager, num_fewshot=2, bootstrap_iters=1000)
    for task, samples in theirs["samples"].items():
        for here, there in zip(ours[design]["samples"][task], samples, strict=True):
            assert here["arguments"] == there["arguments"]  # the same solved examples among them
            for answer, expected in zip(here["resps"], there["resps"], strict=True):
                is_text = isinstance(expected[0], str)
                close = expected if is_text else [pytest.approx(expected[0], rel=1e-6, abs=1e-4)]
                assert answer == close, task
    for task, scores in theirs["results"].items():
        numbers = {key: value for key, value in scores.items() if isinstance(value, float)}
        assert numbers and {key: ours[design]["results"][task][key] for key in numbers} == pytest.approx(
            numbers
        )


def killed(rank: int, folder: Path, keep: Path) -> None:
    """Two ranks evaluate, and rank 0 ends by SIGKILL once it has kept an answer to the fourth task, whichever
    rank is the next to have one."""
    kept.WRITE_EVERY_S = 0.0
    fourth, process = keep / "mmlu_tides", keep.with_name("rank0")
    if rank == 0:
        process.write_text(str(os.getpid()))

    def add(answers: KeptAnswers, batch: int, given: Any) -> None:
        if answers._folder == fourth:
            while rank == 1 and not any(fourth.glob("*.jsonl")):
                time.sleep(0.05)
            if any(fourth.glob("*.jsonl")):
                os.kill(int(process.read_text()), signal.SIGKILL)
                time.sleep(600)
        real(answers, batch, given)

    real, KeptAnswers.add = KeptAnswers.add, add  # type: ignore[method-assign]
    evaluated("vanilla", folder, keep, [])


def on_ranks(rank: int, folder: Path, left_over: Path, out: Path) -> None:
    said: list[str] = []
    for design in DESIGNS:
        results = evaluated(design, folder, left_over if design == "vanilla" else None, said)
        (out / f"{design}_{rank}").write_bytes(pickle.dumps(results))
    assert goes_on_in_the_middle(said)


def goes_on_in_the_middle(said: list[str]) -> bool:
    """Whether the answers to three tasks were found, and to the fourth in part."""
    found = {line.split(":")[0]: line.split()[1:4:2] for line in said}
    are_all = [count == total for count, total in found.values()]
    return [*found] == ["sciq", "openbookqa", "copa", "mmlu_tides"] and are_all == [True] * 3 + [False]


def test_ranks_and_a_kill_in_the_middle_change_no_bit(ours, folder, tmp_path):
    with pytest.raises(ForkedError, match="status -9"):
        run_on_ranks(killed, 2, folder, tmp_path / "kept")
    shutil.copytree(tmp_path / "kept", tmp_path / "kept_for_ranks")
    said: list[str] = []
    assert evaluated("vanilla", folder, tmp_path / "kept", said) == ours["vanilla"]
    assert goes_on_in_the_middle(said), said
    run_on_ranks(on_ranks, 2, folder, tmp_path / "kept_for_ranks", tmp_path)
    for design in DESIGNS:
        for rank in (0, 1):
            assert pickle.loads((tmp_path / f"{design}_{rank}").read_bytes()) == ours[design]
