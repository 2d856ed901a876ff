"""The DeepSpeed engine around a model, and the parameter groups its optimizer gets."""

import math
from typing import Any

from torch import nn

from .accelerator import deepspeed


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: decay on tensors of two or more dimensions, none on biases and gains, as in nanoGPT.

    A parameter marked `_no_weight_decay = True` opts out of the decay; one marked `_lr_mult = 0.1` gets that
    multiple of the learning rate. A tied tensor stands in one group, once.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.dim() >= 2 and not getattr(parameter, "_no_weight_decay", False)
        decay, multiplier = (weight_decay if decays else 0.0), float(getattr(parameter, "_lr_mult", 1.0))
        group = groups.setdefault(
            (decay, multiplier), {"params": [], "weight_decay": decay, "lr_mult": multiplier}
        )
        group["params"].append(parameter)
    return list(groups.values())


def build_engine(model: nn.Module, ds_config: dict[str, Any]) -> Any:
    """The DeepSpeed engine of `model` as the JSON says. The process group must exist."""
    weight_decay = ds_config["optimizer"].get("params", {}).get("weight_decay", 0.0)
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=parameter_groups(model, weight_decay), config=ds_config
    )
    return engine


def set_learning_rate(engine: Any, rate: float) -> None:
    """Give every group its learning rate for the coming optimizer step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]


def gradient_norm(engine: Any) -> float:
    """Global L2 norm of the last step's averaged gradients before clipping; not finite if it was skipped."""
    norm = engine.get_global_grad_norm()
    return math.nan if norm is None else float(norm)
