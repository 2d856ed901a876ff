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

from .accelerator import deepspeed
from .config import unknown_key

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
_DTYPES = ("fp32", "fp16", "bf16", "float32", "float16", "bfloat16")


_KNOWN = [
    *_VALUES,
    *_SECTION_KEYS,
    *(f"{name}.{key}" for name, keys in _SECTION_KEYS.items() for key in keys),
    *_SECTION_MODELS,
    *(f"{name}.{key}" for name, model in _SECTION_MODELS.items() for key in model.model_fields),
    *(f"optimizer.params.{key}" for key in _ADAM_PARAMS),
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
    if str(kind).lower() in ("adam", "adamw"):
        for key in params:
            if f"optimizer.params.{key}" not in _KNOWN:
                raise unknown_key(
                    f"optimizer.params.{key}", [known for known in _KNOWN if ".params." in known], where
                )
    for key, default in (("lr", None), ("weight_decay", 0.0), ("eps", 1e-8)):
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
