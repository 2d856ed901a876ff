"""The DeepSpeed engine around a model, and the parameter groups its optimizer gets."""

import copy
import gc
import math
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from model import GPT
from model.errors import UserError
from model.treatment import cast_floating_buffers

from .fewer_kernels import use_fewer_kernels
from .ranks import deepspeed
from .unusual import keep_blocks_whole, scalars_allowed, watch_unused

if TYPE_CHECKING:
    from ..config import DeepSpeedConfig

SECTION_CLASSES: dict[str, type[BaseModel]] = {
    "zero_optimization": deepspeed.runtime.zero.config.DeepSpeedZeroConfig,
    "bf16": deepspeed.runtime.precision_config.DeepSpeedBF16Config,
    "fp16": deepspeed.runtime.precision_config.DeepSpeedFP16Config,
    "comms_logger": deepspeed.comm.config.CommsLoggerConfig,
    "compile": deepspeed.runtime.config.CompileConfig,
}
"""DeepSpeed's classes for sections of the JSON."""
_engines: "weakref.WeakSet[Any]" = weakref.WeakSet()
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def muon_groups(model: Any, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`parameter_groups` split for Muon, whose half is the blocks' matrices but for embeddings; the rest is
    Adam's.

    Args:
        model: has its blocks in `model.blocks`.
        params: the JSON's `optimizer.params`: `muon_lr` and `adam_lr` stand in for `lr`, the peak of the
            schedule, in their half.
    """
    matrices = {id(p) for block in model.blocks for p in block.parameters() if p.dim() == 2}
    matrices -= {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups = []
    for group in parameter_groups(model, params.get("weight_decay", 0.0)):
        for muon in (True, False):
            half = [p for p in group["params"] if (id(p) in matrices) == muon]
            if not half:
                continue
            lr = params.get("muon_lr" if muon else "adam_lr", params["lr"])
            own = ("momentum", "ns_method") if muon else ("betas", "eps")
            settings = {key: params[key] for key in own if key in params}
            multiplier = group["lr_mult"] * lr / params["lr"]
            groups.append(group | settings | {"params": half, "use_muon": muon, "lr_mult": multiplier})
    return groups


def optimizer_groups(model: Any, config: "DeepSpeedConfig") -> list[dict[str, Any]]:
    """The parameter groups of the optimizer that the JSON names."""
    if config.optimizer == "muon":
        return muon_groups(model, config.optimizer_params)
    return parameter_groups(model, config.weight_decay)


def check_with_deepspeed(config: "DeepSpeedConfig") -> None:
    """Have DeepSpeed's own classes check their sections: what `read_deepspeed_config` left to them.

    Raises UserError with one sentence.
    """
    for name, section_class in SECTION_CLASSES.items():
        try:
            section_class(**config.section(name))
        except (ValidationError, AssertionError, TypeError, ValueError) as error:
            raise UserError(f"'{name}' in {config.source}: {_first_problem(error)}") from error


def _first_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    return f"{key} is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def build_engine(model: nn.Module, config: "DeepSpeedConfig") -> Any:
    """The DeepSpeed engine of a GPT, or of a module around one. The process group must exist.

    The GPT's `treatment` holds here too: buffers are cast like the parameters or not, and unused parameters
    are in no group. A forward that uses one all the same raises UserError in its backward.
    """
    gpt = next(module for module in model.modules() if isinstance(module, GPT))
    if gpt.treatment.buffers == "cast":
        cast_floating_buffers(gpt, _DTYPES[config.model_dtype])
    groups = optimizer_groups(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    facts = [{"lr_mult": g["lr_mult"], "names": [names[id(p)] for p in g["params"]]} for g in groups]
    if config.stage == 3:
        keep_blocks_whole(gpt)
    with scalars_allowed():
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=groups,
            optimizer=_muon_with_adam(config.optimizer_params) if config.optimizer == "muon" else None,
            config=copy.deepcopy(dict(config.raw)),
        )
    watch_unused(gpt)
    # Only now: ZeRO has replaced the groups' parameters, but not the groups.
    for group, of_group in zip(engine.optimizer.param_groups, facts, strict=True):
        group.update(of_group)
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        _clip_and_skip_as_zero_does(engine)
    if isinstance(engine.optimizer, deepspeed.runtime.fp16.unfused_optimizer.FP16_UnfusedOptimizer):
        _undo_the_first_step(engine.optimizer)
    if isinstance(engine.optimizer, deepspeed.runtime.bf16_optimizer.BF16_Optimizer):
        use_fewer_kernels(engine.optimizer)
    _engines.add(engine)
    return engine


def free_engines() -> None:
    """Give back the memory of this process's engines, of which none may be used any more.

    DeepSpeed keeps parameters by their names, and ZeRO-3's hooks keep the engine.
    """
    for engine in list(_engines):
        optimizer = engine.optimizer
        engine.destroy()
        for owner in (getattr(optimizer, "optimizer", None), optimizer, engine):
            if owner is not None:
                vars(owner).clear()
    _engines.clear()
    deepspeed.utils.debug.debug_clear_module_and_param_names()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def set_learning_rate(engine: Any, rate: float) -> None:
    """Give every group its learning rate for the coming optimizer step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]


def gradient_norm(engine: Any) -> float:
    """Global L2 norm of the last step's averaged gradients before clipping; not finite if it was skipped."""
    norm = engine.get_global_grad_norm()
    return math.nan if norm is None else float(norm)


def log_communication(config: "DeepSpeedConfig") -> None:
    """Print what `comms_logger` has counted, which DeepSpeed does only when asked. All ranks call it."""
    if config.logs_communication:
        deepspeed.comm.log_summary()


def _muon_with_adam(params: Mapping[str, Any]) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    """What makes DeepSpeed's Muon from the groups, with torch's AdamW for what is not Muon's."""

    def build(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        # Imported here: the import compiles Muon's kernels.
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

        # DeepSpeed has just marked matrices by their names, in which it looks for "embed" and "lm_head": the
        # tied embedding is called wte.weight, and would be Muon's.
        for group in groups:
            for parameter in group["params"]:
                parameter.use_muon = group["use_muon"]
        return MuonWithAuxAdam(
            groups, adam_optimizer=torch.optim.AdamW, adam_optimizer_kwargs={"fused": params.get("fused")}
        )

    return build


def _clip_and_skip_as_zero_does(engine: Any) -> None:
    """Without ZeRO and in fp32, DeepSpeed steps with torch's optimizer as it is, and on NaNs.

    Here it measures and clips the gradients' norm and skips a step that is not finite, as the others do.
    """

    def before_step(optimizer: Any, *arguments: Any) -> None:
        limit = engine.gradient_clipping() or math.inf
        norm = nn.utils.clip_grad_norm_(engine.module.parameters(), limit)
        optimizer._global_grad_norm = norm  # both are read by the engine after the step
        optimizer.overflow = not math.isfinite(norm)
        if optimizer.overflow:
            engine.zero_grad()  # without gradients it does nothing

    engine.clip_fp32_gradients = lambda: None
    engine.optimizer.register_step_pre_hook(before_step)


def _undo_the_first_step(optimizer: Any) -> None:
    """DeepSpeed's optimizer of bf16 without ZeRO takes a step without gradients when it is built.

    That decays its fp32 weights and counts for Adam's bias correction.
    """
    optimizer.optimizer.state.clear()
    for masters, weights in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
        for master, weight in zip(masters, weights, strict=True):
            master.data.copy_(weight.data)
