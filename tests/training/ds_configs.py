"""DeepSpeed JSONs for the tests of configs."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.errors import UserError
from training.config import DeepSpeedConfig, read_deepspeed_config

ADAMW = {"type": "AdamW", "params": {"lr": 1e-3}}
BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
GOOD = {"train_micro_batch_size_per_gpu": 2, "optimizer": ADAMW}


def adamw(**params: Any) -> dict[str, Any]:
    """A good config but for what the optimizer is given."""
    return GOOD | {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3} | params}}


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return GOOD | {"zero_optimization": {"stage": stage} | keys}


def muon(stage: int, **sections: Any) -> dict[str, Any]:
    return zero(stage) | {"optimizer": {"type": "Muon", "params": {"lr": 1e-3, "muon_lr": 0.02}}} | sections


def load(
    folder: Path, config: Any, overrides: dict[str, str] | None = None, world_size: int = 1
) -> DeepSpeedConfig:
    """`config` as a dict, or as the file's very text."""
    path = folder / "ds.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return read_deepspeed_config(path, overrides or {}, world_size)


def refusal(folder: Path, config: Any, overrides: dict[str, str] | None = None, world_size: int = 1) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, config, overrides, world_size)
    message = str(caught.value)
    assert "\n" not in message
    return message
