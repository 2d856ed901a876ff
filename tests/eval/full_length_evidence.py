"""What runs of full length leave beside their metrics, made up: losses by document, tasks, layers, slices."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

BYTES_PER_TOKEN = 4.6
LAYERS = 24
BLOCK = 1024


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
        easiness: how far the right choice's log-likelihood lies above the others'.
    """

    items: int
    choices: int
    metrics: tuple[str, ...]
    easiness: float = 0.0


TASKS = {
    "wikitext": Task(62, 0, ("word_perplexity", "byte_perplexity", "bits_per_byte")),
    "lambada_openai": Task(5153, 1, ("perplexity", "acc")),
    "arc_easy": Task(2376, 4, ("acc", "acc_norm"), 2.4),
    "hellaswag": Task(10042, 4, ("acc", "acc_norm"), 0.6),
    "piqa": Task(1838, 2, ("acc", "acc_norm"), 2.0),
    "winogrande": Task(1267, 2, ("acc",), 0.15),
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


# ---- tasks ----
def write_task_scores(
    evaluation: Path,
    stamp: Mapping[str, Any],
    design: int,
    items: np.random.Generator,
    own: np.random.Generator,
) -> None:
    """results.json and per_item.parquet.

    Args:
        evaluation: the checkpoint's folder.
        stamp: what `normlab` of results.json says of the run.
        design: its number.
        items: draws what the items are like, the same for all runs.
        own: draws what the run makes of them.
    """
    results, tables = {}, []
    for name, task in TASKS.items():
        rows, scores = score(task, 0.02 * design, items, own)
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
    else:
        tokens = items.integers(1, 4 if task.choices == 1 else 24, shape)
        answers = -tokens * items.gamma(4, 0.7, shape) + 0.25 * own.standard_normal(shape)
        answers[:, 0] += task.easiness + better
        answers = np.minimum(answers, -0.01)
    texts = (tokens * BYTES_PER_TOKEN).astype(int)
    greedy = answers > -1.6
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


# ---- layers ----
STREAM = ("resid_rms", "kurtosis", "kurtosis_token", "massive_max", "massive_ratio", "massive_count",
          "resid_grad_norm", "lens_loss")  # fmt: skip
ATTENTION = ("attn_entropy", "attn_entropy_min", "attn_entropy_share", "attn_logit_max", "attn_sink",
             "attn_sink_heads")  # fmt: skip
WEIGHTS = ("grad_norm", "weight_norm", "update_ratio")
PARTS = ("", "ln_1", "attn", "ln_2", "mlp")


def levels(loss: float, learnt: float, design: int) -> dict[str, np.ndarray]:
    """Of each measure its values over depth (LAYERS + 1,), `learnt` being the share of the training done."""
    depth = np.linspace(0, 1, LAYERS + 1)
    growth = 1 + (0.3 + 0.15 * design) * depth
    return {
        "resid_rms": 0.03 * np.exp((1 + 4.2 * learnt) * depth * growth),
        "kurtosis": 1.1 + 60 * learnt * np.exp(-((depth - 0.4) ** 2) / 0.1),
        "kurtosis_token": 3 + 200 * learnt * depth,
        "massive_max": 0.15 + 120 * learnt * np.exp(-((depth - 0.5) ** 2) / 0.15),
        "massive_ratio": 5 + 900 * learnt * np.exp(-((depth - 0.5) ** 2) / 0.15),
        "massive_count": np.floor(8 * learnt * depth),
        "resid_grad_norm": 0.5 * np.exp(-3 * depth) + 0.01,
        "lens_loss": loss + (10.8 - loss) * (1 - depth) ** 1.5,
        "layer_cos": 0.3 + 0.68 * depth**0.4,
        "branch_ratio": 0.05 + (1.2 - 0.9 * learnt) * np.exp(-2.5 * depth),
        "branch_cos": 0.4 - 0.6 * depth * learnt,
        "attn_entropy": 5.9 - 3.8 * learnt * np.sin(math.pi * depth),
        "attn_entropy_min": 5.7 - 5.2 * learnt * np.sin(math.pi * depth),
        "attn_entropy_share": 1 - 0.7 * learnt * np.sin(math.pi * depth),
        "attn_logit_max": 0.3 + 28 * learnt * depth,
        "attn_sink": 0.01 + 0.7 * learnt * depth**0.5,
        "attn_sink_heads": learnt * depth**0.5,
        "grad_norm": (0.05 + 0.8 * (1 - learnt)) * np.exp(-1.2 * depth),
        "weight_norm": 18 + 22 * learnt * growth,
        "update_ratio": 2e-2 * (1 - 0.97 * learnt) * np.exp(-0.5 * depth),
    }  # fmt: skip


def write_diagnostics(
    folder: Path, losses: Mapping[int, float], tokens_per_step: int, design: int, rng: np.random.Generator
) -> None:
    """diagnostics.parquet: every layer at the steps of `losses`."""
    rows: list[tuple[int, int, str, int, str, float]] = []
    for step, loss in losses.items():
        at = step, step * tokens_per_step
        values = levels(loss, min(1.0, math.log2(step + 1) / 13.6), design)
        rows.append((*at, "loss", LAYERS, "", loss))
        for name, over_depth in values.items():
            parts = PARTS if name in WEIGHTS else ("", "attn", "mlp") if name.startswith("branch") else ("",)
            parts = ("attn",) if name in ATTENTION else parts
            layers = LAYERS + (name in STREAM)
            noise = 1 + 0.05 * rng.standard_normal((len(parts), layers))
            rows += [
                (*at, name, layer, part, over_depth[layer] * noise[number, layer] / (1 + number))
                for number, part in enumerate(parts)
                for layer in range(layers)
            ]
        for number, name in enumerate(WEIGHTS):
            rows.append((*at, name, 0, "embedding", 0.4 + number))
            rows.append((*at, name, LAYERS, "head", 0.1 + number))
    columns = ["step", "tokens", "name", "layer", "part", "value"]
    pd.DataFrame(rows, columns=columns).astype({"layer": "int32"}).to_parquet(
        folder / "diagnostics.parquet", index=False
    )


def write_diagnosis(evaluation: Path, loss: float, design: int, rng: np.random.Generator) -> None:
    """diagnosis.parquet: what each layer of the checkpoint does."""
    rows: list[tuple[str, float, float, str, float]] = [("loss", math.nan, math.nan, "", loss)]
    for layer in range(LAYERS):
        cost = 3.0 * math.exp(-layer / 1.4) + 0.02 + 0.01 * rng.random() + 0.05 * (layer == LAYERS - 1)
        rows += [
            ("layer_drop", layer, math.nan, part, cost / share)
            for part, share in (("", 1), ("attn", 3), ("mlp", 2))
        ]
    for layer in range(LAYERS + 1):
        for other in range(layer + 1, LAYERS + 1):
            apart = (other - layer) / LAYERS
            rows.append(("cka", layer, other, "", 1 - 0.7 * apart ** (1 + 0.1 * design)))
            rows.append(("angular_distance", layer, other, "", 0.45 * apart ** (1 + 0.1 * design)))
    table = pd.DataFrame(rows, columns=["name", "layer", "layer_2", "part", "value"])
    table.to_parquet(evaluation / "diagnosis.parquet", index=False)


# ---- slices ----
def write_slices(evaluation: Path, validation: Validation, rng: np.random.Generator) -> None:
    """slices.parquet: each document's losses by position, by frequency of the token and by its length."""
    losses = pq.read_table(evaluation / "validation.parquet")["loss"].to_numpy() / validation.tokens
    starts = [0, *(2**power for power in range(10))]
    buckets = [
        ("position", low, max(low, 2 * low - 1), max(0.05, 1.2 - 0.13 * n)) for n, low in enumerate(starts)
    ]
    buckets += [("frequency", 10**n, 10 ** (n + 1) - 1, 2.4 - 0.9 * n) for n in range(6)]
    tables = []
    for kind, low, high, above in buckets:
        share = 1 / 6 if kind == "frequency" else min(1.0, (high - low + 1) / BLOCK)
        tokens = np.maximum(1, (validation.tokens * share).astype(int))
        noise = 0.1 * rng.standard_normal(len(tokens)) / np.sqrt(tokens)
        tables.append(
            (
                kind,
                low,
                high,
                np.arange(len(tokens)),
                tokens,
                tokens * np.maximum(losses + above + noise, 0.1),
            )
        )
    for power in range(2, 9):
        low, high = 4**power, 4 ** (power + 1) - 1
        of_length = np.flatnonzero((validation.tokens >= low) & (validation.tokens <= high))
        tokens = validation.tokens[of_length]
        tables.append(("length", low, high, of_length, tokens, tokens * losses[of_length]))
    columns = ["kind", "low", "high", "document", "tokens", "loss"]
    pd.concat(
        [pd.DataFrame(dict(zip(columns, values, strict=True))) for values in tables if len(values[3])],
        ignore_index=True,
    ).to_parquet(evaluation / "slices.parquet", index=False)
