"""The results of evaluation jobs in the run folder: results.json and per_item.parquet of a checkpoint."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from model.files import write_text, write_whole
from training.run.reader import evaluation_folder, read_results, read_summary

if TYPE_CHECKING:
    import pandas as pd


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
    return evaluation_folder(run_dir, step) / "results.json"


def check_limit(run_dir: Path, step: int, limit: int | None) -> None:
    """Raise UserError where results over more items are there: a quick look must not replace them."""
    results = read_results(run_dir, step)
    there = results["normlab"]["limit"] if results else 0
    if limit is not None and (there is None or there > limit):
        items = "all items" if there is None else f"{there} items per task"
        raise UserError(
            f"{results_file(run_dir, step)} holds results over {items}, which a limit of {limit} would "
            "replace: move it away first"
        )


def stored_results(run_dir: Path, step: int, limit: int | None, eval_data: str | None) -> dict[str, Any]:
    """results.json of a checkpoint; its `results` hold the tasks scored over these items of this data."""
    stored = read_results(run_dir, step) or {"results": {}}
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

    per_item.parquet has one row for each item and metric: task, doc_id, metric, value and weight. An accuracy
    is the mean of its values. For perplexities, bits_per_byte and loss the value is the log-likelihood in
    nats per unit of weight (words, bytes, a window's tokens, or 1 for an item), and the metric comes from the
    weighted mean.

    Returns:
        The path of results.json.
    """
    import pandas as pd
    from lm_eval.utils import handle_non_serializable

    file = results_file(run_dir, step)
    items_file = file.with_name("per_item.parquet")
    items = per_item(results["samples"])
    sources = dict.fromkeys(results["results"], eval_data)
    results = {key: value for key, value in results.items() if key != "samples"}
    limit = results["config"]["limit"]
    if (there := read_results(run_dir, step)) and there["normlab"]["limit"] == limit:
        results = merge_results(there, results)
        sources = there["normlab"]["eval_data"] | sources
        others = pd.read_parquet(items_file)
        others = others[~others["task"].isin(items["task"].unique())]
        items = pd.concat([others, items], ignore_index=True)
    results["normlab"] = _stamp(run_dir, step, results) | {"limit": limit, "eval_data": sources}
    text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
    write_whole(items_file, lambda path: items.to_parquet(path, index=False))
    write_text(file, text)
    return file


def per_item(samples: Mapping[str, Iterable[Mapping[str, Any]]]) -> "pd.DataFrame":
    """lm-eval's samples as a table of task, doc_id, metric, value and weight; see `write_results`."""
    import pandas as pd

    rows = []
    for task, task_samples in samples.items():
        for sample in task_samples:
            for metric in sample["metrics"]:
                score = sample[metric]
                value, weight = (score[0] / score[1], score[1]) if isinstance(score, tuple) else (score, 1)
                rows.append((task, sample["doc_id"], metric, float(value), float(weight)))
    return pd.DataFrame(rows, columns=["task", "doc_id", "metric", "value", "weight"])


def format_table(results: Mapping[str, Any], tasks: Iterable[str]) -> str:
    """The tasks' scores as aligned lines: task, metric, value, standard error if any, items scored."""
    tasks = tuple(tasks)
    width = max([17, *(len(task) + 2 for task in tasks)])
    lines = []
    for task in tasks:
        for key, value in results["results"][task].items():
            metric = key.removesuffix(",none")
            if metric == key or metric.endswith("_stderr"):
                continue
            stderr = results["results"][task].get(f"{metric}_stderr,none")
            interval = f"± {stderr:.4g}" if isinstance(stderr, float) else ""
            items = results["n-samples"][task]["effective"]
            lines.append(f"{task:<{width}}{metric:<17}{value:>12.6g} {interval:<12}{items:>7} items")
    return "\n".join(lines)


def _stamp(run_dir: Path, step: int, results: Mapping[str, Any]) -> dict[str, Any]:
    summary = read_summary(run_dir) if (run_dir / "summary.json").is_file() else {}
    tokens, last_step = summary.get("tokens"), summary.get("step")
    return {
        "variant": summary.get("variant", results["model_name"]),
        "precision": summary.get("precision"),
        "step": step,
        # Every step trains on as many tokens.
        "tokens": tokens * step // last_step if tokens and last_step else None,
    }
