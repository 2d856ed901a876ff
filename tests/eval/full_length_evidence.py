"""What runs of full length leave beside their metrics, made up: losses by document and scores of tasks."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BYTES_PER_TOKEN = 4.6


@dataclass(frozen=True)
class Validation:
    """Documents of the validation set.

    Attributes:
        tokens: targets of each (D,).
        bytes: of its text (D,).
        hardness: how far its loss lies above the mean (D,), nats per token.
    """

    tokens: np.ndarray
    bytes: np.ndarray
    hardness: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, documents: int = 2400) -> "Validation":
        tokens = np.exp(rng.normal(6.3, 0.95, documents)).astype(int) + 16
        texts = (tokens * rng.normal(BYTES_PER_TOKEN, 0.3, documents)).astype(int)
        return cls(tokens, texts, rng.normal(0, 0.45, documents))

    def losses(self, mean: float, rng: np.random.Generator) -> np.ndarray:
        """Sums over each document (D,) in nats, whose mean over all tokens is `mean`."""
        own = self.hardness + 0.02 * rng.standard_normal(len(self.tokens))
        by_token = own - np.average(own, weights=self.tokens)
        return self.tokens * np.maximum(mean + by_token, 0.2)


class Task(NamedTuple):
    """A task of the protocol.

    Attributes:
        items: how many it has.
        choices: of each item; 0 for documents, 1 for a last word.
        metrics: lm-eval's names.
        ease: how far the right choice's log-likelihood lies above the others'.
    """

    items: int
    choices: int
    metrics: tuple[str, ...]
    ease: float = 0.0


TASKS = {
    "wikitext": Task(62, 0, ("word_perplexity", "byte_perplexity", "bits_per_byte")),
    "lambada_openai": Task(5153, 1, ("perplexity", "acc")),
    "arc_easy": Task(2376, 4, ("acc", "acc_norm"), 1.5),
    "hellaswag": Task(10042, 4, ("acc", "acc_norm"), 0.6),
    "piqa": Task(1838, 2, ("acc", "acc_norm"), 1.0),
    "winogrande": Task(1267, 2, ("acc",), 0.1),
}


def write_document_losses(
    evaluation: Path, validation: Validation, mean: float, rng: np.random.Generator
) -> None:
    """validation.parquet."""
    evaluation.mkdir(parents=True)
    columns = {
        "document": np.arange(len(validation.tokens)),
        "tokens": validation.tokens,
        "bytes": validation.bytes,
        "loss": validation.losses(mean, rng),
    }
    pq.write_table(pa.table(columns), evaluation / "validation.parquet")


def write_task_scores(
    evaluation: Path,
    stamp: Mapping[str, Any],
    better: float,
    items: np.random.Generator,
    own: np.random.Generator,
) -> None:
    """results.json and per_item.parquet.

    Args:
        evaluation: the checkpoint's folder.
        stamp: what `normlab` of results.json says of the run.
        better: nats by which it finds the right answers likelier than vanilla does.
        items: draws what the items are like, the same for all runs.
        own: draws what the run makes of them.
    """
    results, tables = {}, []
    for name, task in TASKS.items():
        rows, scores = score(task, better, items, own)
        tables.append(rows.add_column(0, "task", pa.array([name] * len(rows))))
        results[name] = {"alias": name, "name": name, "sample_len": task.items, **scores}
    pq.write_table(pa.concat_tables(tables), evaluation / "per_item.parquet")
    counts = {name: {"original": task.items, "effective": task.items} for name, task in TASKS.items()}
    per_task = {key: dict.fromkeys(TASKS) for key in ("eval_data", "num_fewshot", "definitions")}
    content = {"results": results, "n-samples": counts, "normlab": {**stamp, "limit": None, **per_task}}
    (evaluation / "results.json").write_text(json.dumps(content, indent=2))


def score(
    task: Task, better: float, items: np.random.Generator, own: np.random.Generator
) -> tuple[pa.Table, dict[str, Any]]:
    """Rows of per_item.parquet without `task`, and lm-eval's scores. The first choice is the right one."""
    width = max(task.choices, 1)
    shape = task.items, width
    if task.choices == 0:
        tokens = items.integers(1500, 9000, shape)
        answers = -tokens * (items.normal(3.35, 0.2, shape) - better + 0.01 * own.standard_normal(shape))
    elif task.choices == 1:
        tokens = items.integers(1, 4, shape)
        answers = -items.gamma(1.5, 2, shape) + better + 0.1 * own.standard_normal(shape)
    else:
        tokens = items.integers(3, 30, (task.items, 1)) + items.integers(0, 2, shape)
        answers = -2.8 * tokens.min(1, keepdims=True) + items.normal(0, 1.5, shape)
        answers = answers + 0.2 * own.standard_normal(shape)
        answers[:, 0] += task.ease + better
    answers = np.minimum(answers, -0.001)
    texts = (tokens * BYTES_PER_TOKEN).astype(int)
    greedy = answers > -1.4
    values = {}
    for metric in task.metrics:
        units = {
            "word_perplexity": texts[:, 0] / 5.6,
            "byte_perplexity": texts[:, 0],
            "bits_per_byte": texts[:, 0],
        }
        weight = units.get(metric, np.ones(task.items)).astype(int).astype(float)
        if metric == "acc":
            value = greedy[:, 0] if task.choices == 1 else answers.argmax(1) == 0
        elif metric == "acc_norm":
            value = (answers / texts).argmax(1) == 0
        else:
            value = answers[:, 0] / weight
        values[metric] = value.astype(float), weight
    rows = pa.table(
        {
            "doc_id": np.repeat(np.arange(task.items), len(values)),
            "metric": list(values) * task.items,
            "value": np.stack([value for value, _ in values.values()], 1).ravel(),
            "weight": np.stack([weight for _, weight in values.values()], 1).ravel(),
            **{
                name: lists(np.repeat(of_choices, len(values), axis=0))
                for name, of_choices in (("loglikelihood", answers), ("bytes", texts), ("tokens", tokens))
            },
            "is_greedy": lists(np.repeat(greedy, len(values), axis=0)) if task.choices
            else pa.nulls(task.items * len(values), pa.list_(pa.bool_())),
        }
    )  # fmt: skip
    return rows, {key: number for metric, of in values.items() for key, number in summed_up(metric, *of)}


def lists(of_choices: np.ndarray) -> pa.ListArray:
    """A list for each row of (N, K)."""
    rows, width = of_choices.shape
    return pa.ListArray.from_arrays(
        pa.array(np.arange(0, (rows + 1) * width, width, dtype=np.int32)), pa.array(of_choices.ravel())
    )


def summed_up(metric: str, value: np.ndarray, weight: np.ndarray) -> Iterable[tuple[str, float | str]]:
    """A metric and its standard error, as lm-eval names them."""
    error = float(value.std(ddof=1) / math.sqrt(len(value)))
    mean = float(np.average(value, weights=weight))
    if metric in ("acc", "acc_norm"):
        return (f"{metric},none", mean), (f"{metric}_stderr,none", error)
    if metric == "perplexity":
        return (f"{metric},none", math.exp(-mean)), (f"{metric}_stderr,none", math.exp(-mean) * error)
    shown = -mean / math.log(2) if metric == "bits_per_byte" else math.exp(-mean)
    return (f"{metric},none", shown), (f"{metric}_stderr,none", "N/A")
