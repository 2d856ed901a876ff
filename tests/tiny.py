"""The tiny models and DeepSpeed configs that tests share; where a test needs another number it says so."""

from typing import Any

from model import GPTConfig

TINY: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 64}
TINIEST: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 32}
THREE_LAYERS: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 48, "vocab_size": 512}
ENGINE_TINY = GPTConfig(**TINY | {"vocab_size": 128}, bias=False)
"""What the engine's tests train, on sequences of 17 tokens."""

ADAMW: dict[str, Any] = {
    "type": "AdamW",
    "params": {"lr": 1e-2, "betas": [0.9, 0.95], "weight_decay": 0.1, "torch_adam": True},
}
DS_CONFIG: dict[str, Any] = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": 1.0,
    "optimizer": ADAMW,
}
BF16: dict[str, Any] = {
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
}
AUTOCAST: dict[str, Any] = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **keys}}
