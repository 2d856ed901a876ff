"""A run folder as train.py and the evaluation jobs leave it, with losses that a test chooses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

BITS_PER_NAT = 0.32
"""Bits per byte for every nat per token: the made-up validation set has 4.5 bytes per token."""


def build_run(
    parent: Path,
    variant: str = "vanilla",
    init_seed: int = 1,
    *,
    folder: str | None = None,
    val_loss: float | None = 5.4,
    tasks: dict[str, dict[str, Any]] | None = None,
    limit: int | None = None,
    documents: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
    recipe: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run below `parent`; its folder is named after variant and seed unless `folder` is given."""
    run = parent / (folder or f"{variant.replace('/', '_')}_s{init_seed}")
    summary = {
        "status": "finished", "variant": variant, "precision": "bf16", "init_seed": init_seed,
        "data_seed": 1234, "val_loss": val_loss, "val_tokens": 100000, "val_fingerprint": "3f2a",
        "val_bits_per_byte": val_loss and BITS_PER_NAT * val_loss, "val_text_fingerprint": "c0de",
        "tokenizer": "gpt2",
        "floors": {"uniform": 10.825, "unigram": 7.31}, "step": 200, "steps": 200, "tokens": 1638400,
        "parameters": 7246848, "model": "4L 4H 128d", "wall_time_s": 123.4, "tokens_per_s": 9000.0,
        "world_size": 2, "skipped_steps": 0, "best_checkpoint": "checkpoints/step_00000200",
        "last_checkpoint": "checkpoints/step_00000200",
    } | changes  # fmt: skip
    evaluation = run / "eval" / "step_00000200"
    evaluation.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(summary))
    rng = np.random.default_rng(init_seed)
    lines = []
    for step in range(1, summary["step"] + 1):
        tokens = step * 8192
        loss = (val_loss or 6) + 5 * np.exp(-step / 30) + 0.1 * rng.standard_normal()
        at = {"step": step, "tokens": tokens, "loss": loss}
        rates = {"grad_norm": 1 / step, "lr": 5e-6 * step, "tokens_per_s": 9000.0}
        lines.append({"kind": "train", **at, **rates})
        if step % 50 == 0:
            lines.append({"kind": "val", **at, "bits_per_byte": BITS_PER_NAT * loss})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if tasks is not None:
        results = {
            "results": {
                task: {"alias": task, "name": task} | {f"{key},none": value for key, value in entries.items()}
                for task, entries in tasks.items()
            },
            "n-samples": {task: {"original": 1000, "effective": limit or 1000} for task in tasks},
            "normlab": {"variant": variant, "precision": "bf16", "step": 200, "limit": limit},
        }
        (evaluation / "results.json").write_text(json.dumps(results))
    if documents is not None:
        documents.to_parquet(evaluation / "validation.parquet")
    if recipe is not None:
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        (run / "ds_config.json").write_text(json.dumps(engine or {}))
    if items is not None:
        items.to_parquet(evaluation / "per_item.parquet")
    return run
