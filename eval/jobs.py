"""Evaluation jobs: lm-eval's tasks on a model, and their results in the run folder."""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.loggers.utils import add_env_info, get_git_commit_hash
from lm_eval.utils import handle_non_serializable, hash_string
from tqdm import tqdm

from data import Tokenizer
from model import GPT, variant_name
from model.files import write_whole

from .lm import NormLabLM

BOOTSTRAP_ITERS = 1000
"""Resamples for the standard error of LAMBADA's perplexity; the other standard errors have closed forms."""


def run_tasks(
    gpt: GPT,
    tokenizer: Tokenizer,
    tasks: Mapping[str, Task],
    *,
    bar: Callable[..., tqdm],
    limit: int | None = None,
) -> dict[str, Any]:
    """Score a model on tasks as `load_tasks` gives them, one progress bar a task.

    Args:
        gpt: on the device it is to run on, in fp32 for results that others can compare with.
        tokenizer: the one that the model was trained with.
        bar: makes a progress bar from a title and tqdm's options, as `Console.bar` does.
        limit: score only the first items of each task.

    Returns:
        What `lm_eval` returns: `results`, `configs`, `versions`, `n-shot`, `higher_is_better`, `n-samples`
        and `samples` by task, `config`, `date`, versions of the libraries.

    Raises ValueError where a task has an answer of more tokens than the model's block_size.
    """
    # lm-eval would bootstrap in a pool of processes forked from this one, which may hold a GPU.
    os.environ["DISABLE_MULTIPROC"] = "1"
    tracker = GeneralConfigTracker()
    variant = variant_name(gpt.config)
    tracker.log_experiment_args("normlab", {"model": variant}, None, None, False)
    results: dict[str, Any] = {"date": time.time()}
    for name, task in tasks.items():
        lm = NormLabLM(gpt, tokenizer, bar=partial(bar, f"{name:<16}", unit_scale=False))
        try:
            of_task = evaluate(lm, {"tasks": {name: task}}, limit=limit, bootstrap_iters=BOOTSTRAP_ITERS)
        except ValueError as error:
            raise ValueError(f"task '{name}': {error}") from error
        of_task["task_hashes"] = {name: _task_hash(of_task["samples"][name])}
        results = merge_results(results, of_task)
    tracker.log_end_time()
    parameter = next(gpt.parameters())
    results["config"] = {
        "model": "normlab",
        "model_args": asdict(gpt.config),
        "tokenizer": tokenizer.name,
        "model_num_parameters": gpt.num_parameters(),
        "model_dtype": str(parameter.dtype),
        "device": str(parameter.device),
        "limit": limit,
        "bootstrap_iters": BOOTSTRAP_ITERS,
    }
    return results | _environment() | asdict(tracker)


def merge_results(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new` over `old`: what is kept by task is kept for the tasks of both, all else is the new one's."""
    by_task = (
        "results",
        "group_subtasks",
        "configs",
        "versions",
        "n-shot",
        "higher_is_better",
        "n-samples",
        "task_hashes",
        "samples",
    )
    return {**old, **new} | {key: {**old.get(key, {}), **new[key]} for key in by_task if key in new}


def results_file(run_dir: Path, step: int) -> Path:
    """Where the results of a run's checkpoint lie."""
    return run_dir / "eval" / f"step_{step:08d}" / "results.json"


def check_limit(run_dir: Path, step: int, limit: int | None) -> None:
    """Raise ValueError where results over more items are there: a quick look must not replace them."""
    file = results_file(run_dir, step)
    there = json.loads(file.read_text())["normlab"]["limit"] if file.exists() else 0
    if limit is not None and (there is None or there > limit):
        items = "all items" if there is None else f"{there} items a task"
        raise ValueError(
            f"{file} holds results over {items}, which a limit of {limit} would replace: move it away first"
        )


def stored_results(run_dir: Path, step: int, limit: int | None, eval_data: str | None) -> dict[str, Any]:
    """results.json of a checkpoint; its `results` hold the tasks scored over these items of this data."""
    file = results_file(run_dir, step)
    stored = json.loads(file.read_text()) if file.exists() else {"results": {}}
    same = {
        task: scores
        for task, scores in stored["results"].items()
        if stored["normlab"]["limit"] == limit and stored["normlab"]["eval_data"][task] == eval_data
    }
    return stored | {"results": same}


def write_results(run_dir: Path, step: int, results: dict[str, Any], *, eval_data: str | None) -> Path:
    """Write results.json and per_item.parquet below RUN/eval, each whole or not at all.

    results.json is in lm-eval's format, with one key of ours, `normlab`: variant, precision (of the
    training), step, tokens, limit, eval_data (by task). Tasks that are there with the same limit stay; with
    another limit they go, so that a file holds scores over one choice of items.

    per_item.parquet has a row for each item and metric: task, doc_id, metric, value and weight. An accuracy
    is the mean of its values. For perplexities and bits_per_byte the value is the log-likelihood in nats per
    unit of weight (words, bytes, or 1 for an item), and the metric comes from the weighted mean.

    Returns:
        The path of results.json.
    """
    file = results_file(run_dir, step)
    items_file = file.with_name("per_item.parquet")
    items = per_item(results["samples"])
    sources = dict.fromkeys(results["results"], eval_data)
    results = {key: value for key, value in results.items() if key != "samples"}
    limit = results["config"]["limit"]
    if file.exists() and (there := json.loads(file.read_text()))["normlab"]["limit"] == limit:
        results = merge_results(there, results)
        sources = there["normlab"]["eval_data"] | sources
        others = pd.read_parquet(items_file)
        others = others[~others["task"].isin(items["task"].unique())]
        items = pd.concat([others, items], ignore_index=True)
    results["normlab"] = _stamp(run_dir, step, results) | {"limit": limit, "eval_data": sources}
    text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
    write_whole(items_file, lambda path: items.to_parquet(path, index=False))
    write_whole(file, lambda path: path.write_text(text))
    return file


def per_item(samples: Mapping[str, Iterable[Mapping[str, Any]]]) -> pd.DataFrame:
    """lm-eval's samples as a table of task, doc_id, metric, value and weight; see `write_results`."""
    rows = []
    for task, of_task in samples.items():
        for sample in of_task:
            for metric in sample["metrics"]:
                score = sample[metric]
                value, weight = (score[0] / score[1], score[1]) if isinstance(score, tuple) else (score, 1)
                rows.append((task, sample["doc_id"], metric, float(value), float(weight)))
    return pd.DataFrame(rows, columns=["task", "doc_id", "metric", "value", "weight"])


def format_table(results: Mapping[str, Any], tasks: Iterable[str]) -> str:
    """The tasks' scores as aligned lines: task, metric, value, standard error if any, items scored."""
    lines = []
    for task in tasks:
        for key, value in results["results"][task].items():
            metric = key.removesuffix(",none")
            if metric == key or metric.endswith("_stderr"):
                continue
            stderr = results["results"][task].get(f"{metric}_stderr,none")
            interval = f"± {stderr:.4g}" if isinstance(stderr, float) else ""
            items = results["n-samples"][task]["effective"]
            lines.append(f"{task:<17}{metric:<17}{value:>12.6g} {interval:<12}{items:>7} items")
    return "\n".join(lines)


def _stamp(run_dir: Path, step: int, results: Mapping[str, Any]) -> dict[str, Any]:
    file = run_dir / "summary.json"
    summary = json.loads(file.read_text()) if file.exists() else {}
    tokens, last_step = summary.get("tokens"), summary.get("step")
    return {
        "variant": summary.get("variant", results["model_name"]),
        "precision": summary.get("precision"),
        "step": step,
        # Every step trains on as many tokens.
        "tokens": tokens * step // last_step if tokens and last_step else None,
    }


def _task_hash(samples: Iterable[Mapping[str, str]]) -> str:
    """lm-eval's hash of a task's documents, prompts and targets: equal where two runs had the same items."""
    return hash_string("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples))


@cache
def _environment() -> dict[str, Any]:
    environment: dict[str, Any] = {"git_hash": get_git_commit_hash()}
    add_env_info(environment)
    return environment
