"""What is refused in a DeepSpeed JSON: unknown keys, wrong values, and what would train something else."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from model.options import describe_type

from .command_line import unknown_key
from .deepspeed_keys import (
    ALIASES,
    CHECKED_SECTIONS,
    CHECKED_SUBSECTIONS,
    ELSEWHERE,
    KNOWN,
    OPTIMIZER_PARAMETERS,
    OPTIMIZERS,
    VALUES,
    Key,
)

if TYPE_CHECKING:
    from .deepspeed import DeepSpeedConfig

_DTYPES = ("fp32", "fp16", "bf16", "float32", "float16", "bfloat16")
_AT_LEAST_0: dict[str, Any] = {
    "lr": None,
    "weight_decay": 0.0,
    "eps": 1e-8,
    "muon_lr": 0.0,
    "adam_lr": 0.0,
    "momentum": 0.0,
}
"""Numbers of the optimizer and what stands for one that is left out; `lr` must be there."""


def check_keys(config: "DeepSpeedConfig") -> None:
    """Each key by itself: whether it exists and what it holds. Raises UserError."""
    raw, where = config.raw, config.source
    for key, value in raw.items():
        if key in ELSEWHERE:
            raise UserError(f"'{key}' in {where} is not taken from the DeepSpeed JSON: {ELSEWHERE[key]}")
        if key not in KNOWN:
            raise unknown_key(key, [known for known in KNOWN if "." not in known], where)
        _refuse_auto(key, value, where)
        if key in VALUES:
            _check_value(key, value, where)
        elif not isinstance(value, dict):
            raise UserError(f"'{key}' in {where} is {value!r}, but it must be a section in braces")
        else:
            _check_section(key, value, where)
    if "optimizer" not in raw:
        raise UserError(f"{where} has no 'optimizer' section: it needs at least a type and params.lr")
    for one, other in (("bf16", "fp16"), ("bf16", "torch_autocast"), ("fp16", "torch_autocast")):
        if config.enables(one) and config.enables(other):
            raise UserError(f"'{one}' and '{other}' are both enabled in {where}: keep one of them")
    dtype = raw.get("communication_data_type", "fp32")
    if dtype not in ("fp32", "fp16", "bf16"):
        raise UserError(
            f"'communication_data_type' in {where} is '{dtype}', but it must be fp32, fp16 or bf16"
        )


def _refuse_auto(key: str, value: Any, where: str) -> None:
    if value == "auto":
        raise UserError(
            f"'{key}' in {where} is \"auto\", which is Hugging Face's convention and means nothing to "
            "DeepSpeed: write the value"
        )


def _check_value(key: str, value: Any, where: str) -> None:
    kind = VALUES[key]
    taken = (int, float) if kind is float else kind
    if not isinstance(value, taken) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"'{key}' in {where} is {value!r}, but it must be {describe_type(kind)}")


def _check_section(name: str, section: Mapping[str, Any], where: str) -> None:
    for key, value in section.items():
        if f"{name}.{key}" not in KNOWN:
            raise unknown_key(
                f"{name}.{key}", [known for known in KNOWN if known.startswith(f"{name}.")], where
            )
        _refuse_auto(f"{name}.{key}", value, where)
    if name in CHECKED_SECTIONS and (mistake := _mistake(section, CHECKED_SECTIONS[name])):
        raise UserError(f"'{name}' in {where}: {mistake}")
    if name in ("bf16", "fp16", "torch_autocast") and not isinstance(section.get("enabled", False), bool):
        raise UserError(
            f"'{name}.enabled' in {where} is {section['enabled']!r}, but it must be true or false"
        )
    if name in ("data_types", "torch_autocast"):
        for key in ("grad_accum_dtype", "param_dtype", "buffer_dtype", "dtype"):
            if (value := section.get(key)) is not None and value not in _DTYPES:
                raise UserError(
                    f"'{name}.{key}' in {where} is {value!r}, but it must be one of {', '.join(_DTYPES)}"
                )
    if name == "optimizer":
        _check_optimizer(section, where)


def _mistake(section: Mapping[str, Any], keys: Mapping[str, Key], prefix: str = "") -> str | None:
    """The first value that DeepSpeed's class of a section would refuse, as the end of a sentence."""
    for written, value in section.items():
        name = ALIASES.get(written, written)
        if name not in keys:
            return f"{prefix}{written} is {value!r}: extra inputs are not permitted"
        if mistake := keys[name].mistake(value):
            return f"{prefix}{written} is {value!r}: {mistake}"
        below = CHECKED_SUBSECTIONS.get(name, {})
        if mistake := _mistake((below and value) or {}, below, f"{written}."):
            return mistake
    return None


def _check_optimizer(section: Mapping[str, Any], where: str) -> None:
    kind = section.get("type")
    if str(kind).lower() not in OPTIMIZERS:
        raise UserError(
            f"'optimizer.type' in {where} is {kind!r}, but it must be one of {', '.join(OPTIMIZERS)}"
        )
    params = section.get("params", {})
    if not isinstance(params, dict):
        raise UserError(f"'optimizer.params' in {where} is {params!r}, but it must be a section in braces")
    if known := OPTIMIZER_PARAMETERS.get(str(kind).lower()):
        for key in params:
            if key not in known:
                raise unknown_key(
                    f"optimizer.params.{key}", [f"optimizer.params.{name}" for name in sorted(known)], where
                )
    for key, default in _AT_LEAST_0.items():
        value: Any = params.get(key, default)
        if not _is_number(value) or not 0 <= value < math.inf:
            raise UserError(
                f"'optimizer.params.{key}' in {where} is {value!r}, but it must be a number of at least 0"
            )
    betas = params.get("betas", [0.9, 0.999])
    in_range = isinstance(betas, list) and all(_is_number(beta) and 0 <= beta < 1 for beta in betas)
    if not in_range or len(betas) != 2:
        raise UserError(
            f"'optimizer.params.betas' in {where} is {betas!r}, but it must be two numbers of at least 0 and "
            "below 1, such as [0.9, 0.95]"
        )
    for key in ("torch_adam", "adam_w_mode", "amsgrad", "fused"):
        if not isinstance(value := params.get(key, False), bool):
            raise UserError(f"'optimizer.params.{key}' in {where} is {value!r}, but it must be true or false")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_modes(config: "DeepSpeedConfig") -> None:
    """Refuse what DeepSpeed 0.19.8 would crash on later, or compute wrongly. Raises UserError."""
    zero, stage, model_dtype = config.section("zero_optimization"), config.stage, config.model_dtype

    def refuse(key: str, why: str) -> UserError:
        return UserError(f"'{key}' in {config.source} {why}")

    if (dtype := config.dtype_of("data_types", "param_dtype") or model_dtype) != model_dtype:
        raise refuse(
            "data_types.param_dtype",
            f"is {dtype}, but the parameters are {model_dtype}: leave it out, the 'bf16' and 'fp16' sections "
            "decide",
        )
    if stage == 0 and config.accumulation_dtype != model_dtype:
        raise refuse(
            "data_types.grad_accum_dtype",
            f"is {config.accumulation_dtype} with {model_dtype} parameters, but without ZeRO gradients are "
            "accumulated in the parameters' dtype: leave it out, or set zero_optimization.stage to 1, 2 or 3",
        )
    for what in ("optimizer", "param"):
        if config.offload_device(what) == "nvme":
            raise refuse(f"zero_optimization.offload_{what}.device", "is nvme, but it must be cpu or none")
    if config.offloads_optimizer and stage == 0:
        raise refuse("zero_optimization.offload_optimizer", "needs zero_optimization.stage 1, 2 or 3")
    if config.offload_device("param") == "cpu" and stage == 3 and not config.offloads_optimizer:
        raise refuse(
            "zero_optimization.offload_param", "needs zero_optimization.offload_optimizer.device cpu"
        )
    for key in ("bf16_master_weights_and_grads", "bf16_optimizer_states"):
        if config.section("bf16").get(key):
            raise refuse(f"bf16.{key}", "is true, but a run is scored by its fp32 weights: leave it out")
    for key in ("elastic_checkpoint", "legacy_stage1"):
        if zero.get(key):
            raise refuse(
                f"zero_optimization.{key}",
                "is true, which DeepSpeed has given up: set checkpoint.load_universal to resume on another "
                "number of ranks",
            )
    if zero.get("compute_grad_norm") is False:
        raise refuse("zero_optimization.compute_grad_norm", "is false, but every step logs grad_norm")
    scatters = (stage == 3 or stage == 2) and zero.get("reduce_scatter", True)
    for key, default in (("prescale_gradients", False), ("gradient_predivide_factor", 1.0)):
        if scatters and config.raw.get(key, default) != default:
            raise refuse(
                key, f"is {config.raw[key]!r}, which ZeRO-{stage} takes only with reduce_scatter false"
            )
    params = config.optimizer_params
    if config.optimizer in ("adam", "adamw") and not params.get("torch_adam"):
        for key in ("maximize", "foreach", "capturable", "differentiable", "fused"):
            if key in params:
                raise refuse(f"optimizer.params.{key}", "is torch's: set optimizer.params.torch_adam to true")
    if config.optimizer == "muon":
        _check_muon(config)


def _check_muon(config: "DeepSpeedConfig") -> None:
    where, params = config.source, config.optimizer_params
    if config.engine_optimizer not in ("bf16", "torch"):
        offload = ", offload" if config.offloads_optimizer else ""
        raise UserError(
            f"'optimizer.type' in {where} is Muon, whose updates DeepSpeed clips in place of the gradients "
            f"with {config.model_dtype} parameters, {config.accumulation_dtype} accumulation{offload} and "
            f"ZeRO-{config.stage}: use bf16 with data_types.grad_accum_dtype fp32 and ZeRO-1, or fp32 "
            "parameters without ZeRO"
        )
    if config.load_universal and config.stage:
        raise UserError(
            f"'checkpoint.load_universal' in {where} cannot go with Muon, whose momentum DeepSpeed does not "
            "convert: resume on the number of ranks that wrote the checkpoint"
        )
    method = params.get("ns_method", "gram")
    if method not in ("gram", "standard"):
        raise UserError(
            f"'optimizer.params.ns_method' in {where} is {method!r}, but it must be gram or standard"
        )
    if not params["lr"] > 0:
        raise UserError(f"'optimizer.params.lr' in {where} is 0, but muon_lr and adam_lr are multiples of it")
