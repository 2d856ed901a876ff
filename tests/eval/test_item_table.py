"""per_item.parquet by choice, and results.json as lm-eval's own programs read it."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import make_table
from tqdm import tqdm

from data import open_tokenizer
from eval.evidence.results import RunRecord
from eval.harness.tasks import group_results
from eval.jobs import run_tasks
from eval.result_files import stored_results, write_results
from eval.scoring.windows import TextWindows
from eval.tasks import load_tasks
from training.config.evaluation import EvalConfig

from .hf_backend import make_gpt
from .local_tasks import TASKS, write_tasks


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[Path, dict]:
    """A run folder with the results of all tasks, and what `run_tasks` gave."""
    folder, run = write_tasks(tmp_path_factory.mktemp("tasks")), tmp_path_factory.mktemp("run")
    tokenizer, gpt = open_tokenizer("bytes"), make_gpt(257, block_size=128)
    tasks = load_tasks(TASKS, None, include_path=str(folder))
    group = tasks.pop("mmlu_sea")
    tasks["windows"] = TextWindows("windows", "The tide turned. " * 20, "a text")
    results = run_tasks(gpt, tokenizer, tasks, bar=lambda _, **options: tqdm(disable=True))
    config = EvalConfig(("piqa",), include_path=str(folder))
    write_results(run, 1, results, config)
    write_results(run, 1, group_results(group, stored_results(run, 1, config)), config)
    return run, results


@pytest.fixture
def items(evaluated) -> pd.DataFrame:
    return pd.read_parquet(evaluated[0] / "eval" / "step_00000001" / "per_item.parquet")


def test_each_choice_has_its_log_likelihood_bytes_and_tokens(items, evaluated):
    gpt = make_gpt(257, block_size=128)
    of_task = items[(items["task"] == "openbookqa") & (items["metric"] == "acc_norm")]
    assert len(of_task) == 7
    for row, sample in zip(of_task.itertuples(), evaluated[1]["samples"]["openbookqa"], strict=True):
        assert [*row.bytes] == [*row.tokens] == [len(choice.encode()) for _, choice in sample["arguments"]]
        for n, (context, choice) in enumerate(sample["arguments"]):
            tokens = [*context.encode(), *choice.encode()]
            logits = gpt.eval()(torch.tensor([tokens[:-1]]))[0][0, -len(choice) :].double().log_softmax(-1)
            expected = logits[range(len(choice)), tokens[-len(choice) :]].sum().item()
            assert row.loglikelihood[n] == pytest.approx(expected, rel=1e-6)
            assert row.is_greedy[n] == (logits.argmax(-1).tolist() == tokens[-len(choice) :])
        characters = [len(text) for text in sample["doc"]["choices"]["text"]]
        assert row.value == float(np.argmax(row.loglikelihood / characters) == 3)


def test_other_kinds_of_items_have_what_there_is_of_them(items):
    by_task = {task: rows.iloc[0] for task, rows in items.groupby("task")}
    answers = ["loglikelihood", "bytes", "tokens", "is_greedy"]
    assert by_task["stories"][answers].isna().all()
    page = by_task["pages"]
    assert page["is_greedy"] is None and [*page["bytes"]] == [*page["tokens"]]
    assert page["loglikelihood"][0] == pytest.approx(page["value"] * page["weight"])
    window = by_task["windows"]
    assert window["bytes"] is None and window["tokens"][0] == window["weight"] == 128
    assert window["loglikelihood"][0] / 128 == window["value"] and not window["is_greedy"][0]


def test_pandas_spreads_the_choices_over_rows(items):
    of_task = items[(items["task"] == "copa") & (items["metric"] == "acc")]
    choices = of_task.explode(["loglikelihood", "bytes", "tokens", "is_greedy"])
    assert len(choices) == 2 * len(of_task) == 16
    bits = -choices["loglikelihood"].astype(float) / choices["bytes"].astype(float) / math.log(2)
    assert bits.between(1, 20).all()


def test_a_table_from_before_is_read_and_added_to(evaluated, tmp_path):
    folder = tmp_path / "eval" / "step_00000001"
    folder.mkdir(parents=True)
    before = pd.DataFrame(
        [("piqa", 0, "acc", 1.0, 1.0)], columns=["task", "doc_id", "metric", "value", "weight"]
    )
    before.to_parquet(folder / "per_item.parquet")
    there = {"results": {"piqa": {"alias": "piqa", "acc,none": 1.0}}, "normlab": {"limit": None}}
    (folder / "results.json").write_text(json.dumps(there))
    assert RunRecord(tmp_path, {}).items.equals(before)
    copa = {key: value for key, value in evaluated[1].items() if key != "results"}
    copa |= {"results": {"copa": evaluated[1]["results"]["copa"]}}
    copa |= {"samples": {"copa": evaluated[1]["samples"]["copa"]}}
    write_results(tmp_path, 1, copa, EvalConfig(("piqa",)))
    items = RunRecord(tmp_path, {}).items
    assert items["task"].tolist() == ["piqa"] + 8 * ["copa"]
    assert items["loglikelihood"].isna().tolist() == [True] + 8 * [False]


def test_lm_evals_own_programs_read_the_results(evaluated, tmp_path):
    run, results = evaluated
    ours = json.loads((run / "eval" / "step_00000001" / "results.json").read_text())
    table = make_table(ours)
    for name in ("sciq", "pages", "stories", "windows", "mmlu_tides"):
        assert any(name in line for line in table.splitlines()), name
    assert "acc_norm" in table and "word_perplexity" in table
    assert "mmlu_sea" in make_table(ours, "groups")
    tracker = EvaluationTracker(output_path=str(tmp_path))
    tracker.general_config_tracker.log_experiment_args("normlab", {"model": "vanilla"}, None, None, False)
    plain = {key: value for key, value in results.items() if key != "samples"}
    tracker.save_results_aggregated(results=plain, samples=results["samples"] | {"windows": []})
    (theirs,) = tmp_path.rglob("results_*.json")
    assert json.loads(theirs.read_text()).keys() <= ours.keys()
    assert ours["task_hashes"]["sciq"] == json.loads(theirs.read_text())["task_hashes"]["sciq"]
