"""What is refused in a DeepSpeed JSON: unknown keys, wrong values, and what would train something else."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from model.options import describe_type, fits

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


def _check_keys(config: Mapping[str, Any], where: str) -> None:
    for key, value in config.items():
        if key in _ELSEWHERE:
            raise ValueError(f"'{key}' in {where} is not taken from the DeepSpeed JSON: {_ELSEWHERE[key]}")
        if key not in _KNOWN:
            raise unknown_key(key, [known for known in _KNOWN if "." not in known], where)
        if value == "auto":
            raise ValueError(
                f"'{key}' in {where} is \"auto\", which is Hugging Face's convention and means nothing to "
                "DeepSpeed: write the value"
            )
        if key in _VALUES:
            _check_value(key, value, where)
        elif not isinstance(value, dict):
            raise ValueError(f"'{key}' in {where} is {value!r}, but it must be a section in braces")
        else:
            _check_section(key, value, where)
    if "optimizer" not in config:
        raise ValueError(f"{where} has no 'optimizer' section: it needs at least a type and params.lr")
    if all(config.get(mode, {}).get("enabled") for mode in ("bf16", "fp16")):
        raise ValueError(f"'bf16' and 'fp16' are both enabled in {where}: keep one of them")
    for mode in ("bf16", "fp16"):
        if all(config.get(section, {}).get("enabled") for section in (mode, "torch_autocast")):
            raise ValueError(f"'{mode}' and 'torch_autocast' are both enabled in {where}: keep one of them")
    dtype = config.get("communication_data_type", "fp32")
    if dtype not in ("fp32", "fp16", "bf16"):
        raise ValueError(
            f"'communication_data_type' in {where} is '{dtype}', but it must be fp32, fp16 or bf16"
        )


def _check_section(name: str, section: Mapping[str, Any], where: str) -> None:
    for key, value in section.items():
        if f"{name}.{key}" not in _KNOWN:
            raise unknown_key(
                f"{name}.{key}", [known for known in _KNOWN if known.startswith(f"{name}.")], where
            )
        if value == "auto":
            raise ValueError(
                f"'{name}.{key}' in {where} is \"auto\", which is Hugging Face's convention and means "
                "nothing to DeepSpeed: write the value"
            )
    if name in _SECTION_MODELS:
        try:
            _SECTION_MODELS[name](**section)
        except (ValidationError, AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"'{name}' in {where}: {_first_problem(error)}") from error
    if name in ("bf16", "fp16", "torch_autocast") and not isinstance(section.get("enabled", False), bool):
        raise ValueError(
            f"'{name}.enabled' in {where} is {section['enabled']!r}, but it must be true or false"
        )
    if name in ("data_types", "torch_autocast"):
        for key in ("grad_accum_dtype", "param_dtype", "buffer_dtype", "dtype"):
            if (value := section.get(key)) is not None and value not in _DTYPES:
                raise ValueError(
                    f"'{name}.{key}' in {where} is {value!r}, but it must be one of {', '.join(_DTYPES)}"
                )
    if name == "optimizer":
        _check_optimizer(section, where)


def _first_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    return f"{key} is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _check_optimizer(section: Mapping[str, Any], where: str) -> None:
    known = deepspeed.runtime.config.DEEPSPEED_OPTIMIZERS
    kind = section.get("type")
    if str(kind).lower() not in known:
        raise ValueError(f"'optimizer.type' in {where} is {kind!r}, but it must be one of {', '.join(known)}")
    params = section.get("params", {})
    if not isinstance(params, dict):
        raise ValueError(f"'optimizer.params' in {where} is {params!r}, but it must be a section in braces")
    if known_params := _PARAMS.get(str(kind).lower()):
        for key in params:
            if key not in known_params:
                raise unknown_key(
                    f"optimizer.params.{key}", [f"optimizer.params.{known}" for known in known_params], where
                )
    defaults = {"lr": None, "weight_decay": 0.0, "eps": 1e-8, "muon_lr": 0.0, "adam_lr": 0.0, "momentum": 0.0}
    for key, default in defaults.items():
        value: Any = params.get(key, default)
        if not _is_number(value) or not 0 <= value < math.inf:
            raise ValueError(
                f"'optimizer.params.{key}' in {where} is {value!r}, but it must be a number of at least 0"
            )
    betas = params.get("betas", [0.9, 0.999])
    in_range = isinstance(betas, list) and all(_is_number(beta) and 0 <= beta < 1 for beta in betas)
    if not in_range or len(betas) != 2:
        raise ValueError(
            f"'optimizer.params.betas' in {where} is {betas!r}, but it must be two numbers of at least 0 and "
            "below 1, such as [0.9, 0.95]"
        )
    for key in ("torch_adam", "adam_w_mode", "amsgrad", "fused"):
        if not isinstance(value := params.get(key, False), bool):
            raise ValueError(
                f"'optimizer.params.{key}' in {where} is {value!r}, but it must be true or false"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_modes(config: Mapping[str, Any], where: str) -> None:
    """Refuse in one sentence what DeepSpeed 0.19.8 would crash on later, or compute wrongly."""
    zero = config.get("zero_optimization", {})
    stage, mode = zero.get("stage", 0), precision(config)
    model_dtype = mode if mode in ("bf16", "fp16") else "fp32"
    types = {
        key: _SHORT_DTYPES.get(dtype, dtype) for key, dtype in config.get("data_types", {}).items() if dtype
    }
    accumulation = types.get("grad_accum_dtype", model_dtype)

    def refuse(key: str, why: str) -> ValueError:
        return ValueError(f"'{key}' in {where} {why}")

    if types.get("param_dtype", model_dtype) != model_dtype:
        raise refuse(
            "data_types.param_dtype",
            f"is {types['param_dtype']}, but the parameters are {model_dtype}: leave it out, the 'bf16' and "
            "'fp16' sections decide",
        )
    if stage == 0 and accumulation != model_dtype:
        raise refuse(
            "data_types.grad_accum_dtype",
            f"is {accumulation} with {model_dtype} parameters, but without ZeRO gradients are accumulated in "
            "the parameters' dtype: leave it out, or set zero_optimization.stage to 1, 2 or 3",
        )
    devices = {
        key: (zero.get(key) or {}).get("device", "none") for key in ("offload_optimizer", "offload_param")
    }
    for key, device in devices.items():
        if device == "nvme":
            raise refuse(f"zero_optimization.{key}.device", "is nvme, but it must be cpu or none")
    offload = devices["offload_optimizer"] == "cpu"
    if offload and stage == 0:
        raise refuse("zero_optimization.offload_optimizer", "needs zero_optimization.stage 1, 2 or 3")
    if devices["offload_param"] == "cpu" and stage == 3 and not offload:
        raise refuse(
            "zero_optimization.offload_param", "needs zero_optimization.offload_optimizer.device cpu"
        )
    for key in ("bf16_master_weights_and_grads", "bf16_optimizer_states"):
        if config.get("bf16", {}).get(key):
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
        if scatters and config.get(key, default) != default:
            raise refuse(
                key,
                f"is {config[key]!r}, which ZeRO-{stage} takes only with reduce_scatter false",
            )
    params = config["optimizer"].get("params", {})
    if str(config["optimizer"]["type"]).lower() in ("adam", "adamw") and not params.get("torch_adam"):
        for key in params.keys() & {"fused", "foreach", "maximize", "capturable", "differentiable"}:
            raise refuse(f"optimizer.params.{key}", "is torch's: set optimizer.params.torch_adam to true")
    if str(config["optimizer"]["type"]).lower() == "muon":
        _check_muon(stage, model_dtype, accumulation, offload, config, where)


def _check_muon(
    stage: int, model_dtype: str, accumulation: str, offload: bool, config: Mapping[str, Any], where: str
) -> None:
    reference = stage == 1 and model_dtype == "bf16" and accumulation == "fp32" and not offload
    if not reference and not (stage == 0 and model_dtype == "fp32"):
        raise ValueError(
            f"'optimizer.type' in {where} is Muon, whose updates DeepSpeed clips in place of the gradients "
            f"with {model_dtype} parameters, {accumulation} accumulation{', offload' if offload else ''} and "
            f"ZeRO-{stage}: use bf16 with data_types.grad_accum_dtype fp32 and ZeRO-1, or fp32 parameters "
            "without ZeRO"
        )
    if config.get("checkpoint", {}).get("load_universal") and stage:
        raise ValueError(
            f"'checkpoint.load_universal' in {where} cannot go with Muon, whose momentum DeepSpeed does not "
            "convert: resume on the number of ranks that wrote the checkpoint"
        )
    method = config["optimizer"]["params"].get("ns_method", "gram")
    if method not in ("gram", "standard"):
        raise ValueError(
            f"'optimizer.params.ns_method' in {where} is {method!r}, but it must be gram or standard"
        )
    if not config["optimizer"]["params"]["lr"] > 0:
        raise ValueError(
            f"'optimizer.params.lr' in {where} is 0, but muon_lr and adam_lr are multiples of it"
        )


