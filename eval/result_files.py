"""The results of evaluation jobs in the run folder: results.json and per_item.parquet of a checkpoint."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from model.files import write_text, write_whole
from training.config.evaluation import KNOWN_TASKS, EvalConfig
from training.run.reader import evaluation_folder, read_results, read_summary, reading

from .harness.tasks import definitions_fingerprint

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

HOW = ("eval_data", "num_fewshot", "definitions")
"""What `normlab` of results.json says by task of how it was scored."""
ITEM_COLUMNS = (
    "task",
    "doc_id",
    "metric",
    "value",
    "weight",
    "loglikelihood",
    "bytes",
    "tokens",
    "is_greedy",
)
"""Of per_item.parquet; files from before have the first five."""
WEIGHTED = ("word_perplexity", "byte_perplexity", "bits_per_byte", "token_perplexity", "loss")
"""Metrics that have of each item a log-likelihood in nats and its weight."""


def merge_results(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new` over `old`: what is kept by task is kept for the tasks of both, all else is the new one's."""
    by_task = (
        "results",
        "groups",
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
    there = results["normlab"].get("limit") if results else 0
    if limit is not None and (there is None or there > limit):
        items = "all items" if there is None else f"{there} items per task"
        raise UserError(
            f"{results_file(run_dir, step)} holds results over {items}, which a limit of {limit} would "
            "replace: move it away first"
        )


def stored_results(run_dir: Path, step: int, config: EvalConfig) -> dict[str, Any]:
    """results.json of a checkpoint; its `results` hold the tasks that were scored as `config` asks."""
    stored = read_results(run_dir, step) or {"results": {}}
    same = {
        task: scores
        for task, scores in stored["results"].items()
        if stored["normlab"].get("limit") == config.limit
        and all(stored["normlab"].get(key, {}).get(task) == how for key, how in _how(task, config).items())
    }
    return stored | {"results": same}


def _how(task: str, config: EvalConfig) -> dict[str, Any]:
    """What decides a task's scores beside `limit`, as `normlab` of results.json has it by task."""
    own = None if task in KNOWN_TASKS else definitions_fingerprint(config.include_path)
    return {"eval_data": config.data_dir, "num_fewshot": config.num_fewshot, "definitions": own}


def write_results(run_dir: Path, step: int, results: dict[str, Any], config: EvalConfig) -> Path:
    """Write results.json and per_item.parquet below RUN/eval, each whole or not at all.

    results.json is in lm-eval's format, with one key of ours, `normlab`: variant, precision (of the
    training), step, tokens, limit, and by task eval_data, num_fewshot and definitions (a hash of
    --include_path, for tasks that are not ours). Tasks that are there with the same limit stay; with another
    limit they go, so that a file holds scores over one choice of items.

    per_item.parquet has one row for each item and metric: task, doc_id, metric, value and weight. A metric
    of another filter than lm-eval's `none` is called `metric,filter`; one without a number for each item
    (BLEU) has no rows. An accuracy is the mean of its values. For perplexities, bits_per_byte and loss the
    value is the log-likelihood in nats per unit of weight (words, bytes, a window's tokens, or 1 for an
    item), and the metric comes from the weighted mean.

    In each of an item's rows stand the answers that its value is made of, as lists with an entry for each of
    its choices, in their order (one for a single continuation, a document or a window; for `acc_mutual_info`
    the choices once more, without the question): loglikelihood in nats, bytes and tokens of what was scored,
    is_greedy, whether it is what the model finds likeliest at each token. Bytes are UTF-8 and include the
    space before a choice; windows, which are tokens, have none. Documents have no is_greedy, and items that
    are answered by text none of the four.

    Returns:
        The path of results.json.
    """
    import pandas as pd
    from lm_eval.utils import handle_non_serializable

    file = results_file(run_dir, step)
    items_file = file.with_name("per_item.parquet")
    items = per_item(results["samples"])
    how = {task: _how(task, config) for task in results["results"]}
    by_task = {key: {task: of_task[key] for task, of_task in how.items()} for key in HOW}
    results = {key: value for key, value in results.items() if key != "samples"}
    limit = results["config"]["limit"]
    if (there := read_results(run_dir, step)) and there["normlab"].get("limit") == limit:
        results = merge_results(there, results)
        by_task = {key: there["normlab"].get(key, {}) | of_tasks for key, of_tasks in by_task.items()}
        with reading(items_file):
            others = pd.read_parquet(items_file)
        others = others.reindex(columns=list(ITEM_COLUMNS))
        others = others[~others["task"].isin(how)]
        items = pd.concat([others, items], ignore_index=True) if len(items) and len(others) else others
    results["normlab"] = _stamp(run_dir, step, results) | {"limit": limit} | by_task
    text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
    write_whole(items_file, lambda path: items.to_parquet(path, index=False, schema=_items_schema()))
    write_text(file, text)
    return file


def per_item(samples: Mapping[str, Iterable[Mapping[str, Any]]]) -> "pd.DataFrame":
    """The samples of `run_tasks` as a table of ITEM_COLUMNS; see `write_results`."""
    import numpy as np
    import pandas as pd

    rows = []
    for task, task_samples in samples.items():
        for sample in task_samples:
            answers = _answers(sample)
            for metric in sample["metrics"]:
                score = sample[metric]
                if metric in WEIGHTED and isinstance(score, tuple):
                    value, weight = score[0] / score[1], score[1]
                elif isinstance(score, int | float | np.number | np.bool_):
                    value, weight = score, 1
                else:
                    continue  # what the metric needs of all items at once
                name = score_name(f"{metric},{sample.get('filter', 'none')}")
                rows.append((task, sample["doc_id"], name, float(value), float(weight), *answers))
    return pd.DataFrame(rows, columns=list(ITEM_COLUMNS))


def _answers(sample: Mapping[str, Any]) -> tuple[list[Any] | None, ...]:
    """Log-likelihood, bytes, tokens and is_greedy of each of a sample's requests; None for what has none."""
    scored = []
    for responses, size in zip(sample["resps"], sample["sizes"], strict=True):
        first = responses[0]  # repeats of a request have the same
        if size is not None:
            scored.append((*(first if isinstance(first, tuple) else (first, None)), *size))
    if not scored:
        return (None,) * 4
    log_likelihoods, greedy, size_in_bytes, tokens = map(list, zip(*scored, strict=True))
    columns = (log_likelihoods, size_in_bytes, tokens, greedy)
    return tuple(None if None in column else column for column in columns)


def _items_schema() -> "pa.Schema":
    """A column of nulls alone would have no type."""
    import pyarrow as pa

    kinds = (pa.string(), pa.int64(), pa.string(), pa.float64(), pa.float64())
    lists = (pa.list_(kind) for kind in (pa.float64(), pa.int64(), pa.int64(), pa.bool_()))
    return pa.schema(list(zip(ITEM_COLUMNS, (*kinds, *lists), strict=True)))


def score_name(key: str) -> str:
    """lm-eval's key `metric,filter` as tables have it: without a filter that is `none`."""
    return key.removesuffix(",none")


def format_table(results: Mapping[str, Any], names: Iterable[str]) -> str:
    """Scores as aligned lines: task, metric, value, standard error if any, items scored.

    A group's tasks stand before it, as they were scored.
    """
    names = list(dict.fromkeys(task for name in names for task in _with_members(name, results)))
    rows = []
    for task in names:
        scores, items = results["results"][task], results["n-samples"][task]["effective"]
        for key, value in scores.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            stderr = scores.get(f"{metric}_stderr,{filter_name}")
            interval = f"± {stderr:.4g}" if isinstance(stderr, float) else ""
            shown = f"{value:.6g}" if isinstance(value, int | float) else str(value)
            rows.append((task, score_name(key), f"{shown:>12} {interval:<12}{items:>7} items"))
    task_width, metric_width = (max([17, *(len(row[i]) + 2 for row in rows)]) for i in (0, 1))
    return "\n".join(f"{task:<{task_width}}{name:<{metric_width}}{rest}" for task, name, rest in rows)


def _with_members(name: str, results: Mapping[str, Any]) -> list[str]:
    members = results.get("group_subtasks", {}).get(name, [])
    return [*(task for member in members for task in _with_members(member, results)), name]


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
