"""Losses of runs of full length by layer and by slice, made up."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from .full_length_evidence import Validation

LAYERS = 24
BLOCK = 1024
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
