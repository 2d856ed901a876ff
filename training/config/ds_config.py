"""The DeepSpeed JSON: read, overridden, checked key by key, and its batch sizes worked out.

DeepSpeed 0.19.8 ignores unknown keys at the top level and in several sections, so a misspelt key would
silently train something else; here it ends the run before anything is built.
"""

import inspect
import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from pydantic import BaseModel, ValidationError

from ..engine.ranks import deepspeed
from .command import unknown_key

MINIMUM_DEEPSPEED = "0.19.8"

_SECTION_MODELS: dict[str, type[BaseModel]] = {
    "zero_optimization": deepspeed.runtime.zero.config.DeepSpeedZeroConfig,
    "bf16": deepspeed.runtime.precision_config.DeepSpeedBF16Config,
    "fp16": deepspeed.runtime.precision_config.DeepSpeedFP16Config,
    "comms_logger": deepspeed.comm.config.CommsLoggerConfig,
    "compile": deepspeed.runtime.config.CompileConfig,
}
_SECTION_KEYS: dict[str, set[str]] = {
    "torch_autocast": {"enabled", "dtype", "lower_precision_safe_modules"},
    "data_types": {"grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"},
    "optimizer": {"type", "params"},
    "checkpoint": {"tag_validation", "load_universal", "use_node_local_storage", "parallel_write", "writer"},
    "activation_checkpointing": {
        "partition_activations",
        "cpu_checkpointing",
        "contiguous_memory_optimization",
        "number_checkpoints",
        "synchronize_checkpoint_boundary",
        "profile",
    },
    "flops_profiler": {
        "enabled",
        "recompute_fwd_factor",
        "profile_step",
        "module_depth",
        "top_modules",
        "detailed",
        "output_file",
    },
    "aio": {
        "block_size",
        "queue_depth",
        "intra_op_parallelism",
        "single_submit",
        "overlap_events",
        "use_gds",
    },
    "timers": {"throughput"},
}
_VALUES: dict[str, type | tuple[type, ...]] = {
    "train_batch_size": int,
    "train_micro_batch_size_per_gpu": int,
    "gradient_accumulation_steps": int,
    "gradient_clipping": (int, float),
    "communication_data_type": str,
    "prescale_gradients": bool,
    "gradient_predivide_factor": (int, float),
    "steps_per_print": (int, type(None)),
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "disable_python_gc": bool,
    "zero_allow_untested_optimizer": bool,
    "zero_force_ds_cpu_optimizer": bool,
    "log_level": str,
}
_ELSEWHERE = {
    "scheduler": "the learning-rate schedule is the recipe's: set it in its 'schedule' section",
    "wandb": "tracking is the recipe's: set it in its 'tracking' section",
    "tensorboard": "metrics go to metrics.jsonl and W&B: set tracking in the recipe's 'tracking' section",
    "csv_monitor": "metrics go to metrics.jsonl and W&B: set tracking in the recipe's 'tracking' section",
}
_ADAM_PARAMS = {*inspect.signature(torch.optim.AdamW).parameters} - {"params"} | {"torch_adam", "adam_w_mode"}
_MUON_PARAMS = {"lr", "muon_lr", "adam_lr", "momentum", "ns_method", "betas", "eps", "weight_decay"} | {
    "torch_adam",
    "fused",
}
_PARAMS = {"adam": _ADAM_PARAMS, "adamw": _ADAM_PARAMS, "muon": _MUON_PARAMS}
_DTYPES = ("fp32", "fp16", "bf16", "float32", "float16", "bfloat16")
_SHORT_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


_KNOWN = [
    *_VALUES,
    *_SECTION_KEYS,
    *(f"{name}.{key}" for name, keys in _SECTION_KEYS.items() for key in keys),
    *_SECTION_MODELS,
    *(
        f"{name}.{key}"
        for name, model in _SECTION_MODELS.items()
        for field, info in model.model_fields.items()
        for key in {field, info.alias or field}
    ),
    *(f"optimizer.params.{key}" for key in _ADAM_PARAMS | _MUON_PARAMS),
]
"""Every key as a dotted path."""


def load_ds_config(path: Path, overrides: Mapping[str, str], world_size: int) -> dict[str, Any]:
    """The DeepSpeed config with overrides applied and all three batch sizes (in sequences) written out.

    Raises ValueError with one sentence: JSON that does not parse, an unknown key, a value of the wrong type,
    batch sizes that do not divide, a section that lives in the recipe, or a DeepSpeed that is too old.
    """
    if Version(installed := version("deepspeed")) < Version(MINIMUM_DEEPSPEED):
        raise ValueError(
            f"DeepSpeed {installed} is installed, but {MINIMUM_DEEPSPEED} or newer is needed: older ones "
            "silently lose gradients under ZeRO-1 with bf16 and accumulation in fp32"
        )
    try:
        config = json.loads(path.read_text(), object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON at line {error.lineno}: {error.msg}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, but holds {type(config).__name__}")
    for key, value in overrides.items():
        if key.partition(".")[0] not in _ELSEWHERE and key not in _KNOWN:
            raise unknown_key(f"ds.{key}", [f"ds.{known}" for known in _KNOWN], "the command line")
        _override(config, key, value)
    where = f"{path} with its --ds overrides" if overrides else str(path)
    _check_keys(config, where)
    _check_modes(config, where)
    config |= _batch_sizes(config, world_size, where)
    return config


def precision(config: Mapping[str, Any]) -> str:
    """The mode that every result is stamped with: fp32, bf16, fp16, or autocast_bf16 (fp32 parameters)."""
    for mode in ("bf16", "fp16"):
        if config.get(mode, {}).get("enabled"):
            return mode
    autocast = config.get("torch_autocast", {})
    if autocast.get("enabled"):
        return (
            "autocast_fp16"
            if "16" in (dtype := autocast.get("dtype", "bfloat16")) and "b" not in dtype
            else "autocast_bf16"
        )
    return "fp32"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the DeepSpeed JSON holds the key '{key}' twice")
    return dict(pairs)


def _override(config: dict[str, Any], path: str, text: str) -> None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    *parents, leaf = path.split(".")
    section = config
    for name in parents:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise ValueError(f"--ds.{path} goes below '{name}', which is a value and not a section")
    section[leaf] = value


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


def _check_value(key: str, value: Any, where: str) -> None:
    kind = _VALUES[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        words = {
            int: "an integer",
            float: "a number",
            str: "a text",
            bool: "true or false",
            type(None): "null",
        }
        raise ValueError(
            f"'{key}' in {where} is {value!r}, but it must be {' or '.join(words[k] for k in kinds)}"
        )


def _batch_sizes(config: Mapping[str, Any], world_size: int, where: str) -> dict[str, int]:
    """train_batch_size = micro-batch x accumulation x ranks: the third of them from any two."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    for name in names:
        if config.get(name, 1) < 1:
            raise ValueError(f"'{name}' in {where} is {config[name]}, but it must be at least 1")
    total, micro, accumulation = (config.get(name) for name in names)
    if total is None:
        if micro is None:
            raise ValueError(f"{where} sets neither 'train_batch_size' nor 'train_micro_batch_size_per_gpu'")
        accumulation = accumulation or 1
        total = micro * accumulation * world_size
    elif micro is None:
        accumulation = accumulation or 1
        micro = total // (accumulation * world_size)
    elif accumulation is None:
        accumulation = total // (micro * world_size)
    if total != micro * accumulation * world_size:
        given = ", ".join(f"{name} {config[name]}" for name in names if name in config)
        raise ValueError(
            f"the batch sizes in {where} do not divide: {given} on {world_size} rank(s), but "
            "train_batch_size must be train_micro_batch_size_per_gpu x gradient_accumulation_steps x ranks"
        )
    return dict(zip(names, (total, micro, accumulation), strict=True))
