"""What is refused in a DeepSpeed JSON: unknown keys, wrong values, and what would train something else."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from model.errors import UserError

from .command_line import unknown_key
from .deepspeed_keys import ELSEWHERE, KEYS, OPTIMIZER_PARAMETERS, OPTIMIZERS, PARAMETERS
from .json_key import Key

if TYPE_CHECKING:
    from .deepspeed import DeepSpeedConfig


def check_keys(config: "DeepSpeedConfig") -> None:
    """Each key by itself: whether it exists and what it holds. Raises UserError."""
    raw, where = config.raw, config.source
    for key in raw:
        if key in ELSEWHERE:
            raise UserError(f"'{key}' in {where} is not taken from the DeepSpeed JSON: {ELSEWHERE[key]}")
    _check_section("", raw, where)
    if "optimizer" not in raw:
        raise UserError(f"{where} has no 'optimizer' section: it needs at least a type and params.lr")
    _check_optimizer(raw["optimizer"], where)
    for one, other in (("bf16", "fp16"), ("bf16", "torch_autocast"), ("fp16", "torch_autocast")):
        if config.enables(one) and config.enables(other):
            raise UserError(f"'{one}' and '{other}' are both enabled in {where}: keep one of them")


def _check_section(name: str, section: Mapping[str, Any], where: str) -> None:
    """The keys of a section, of the whole JSON for no name, and of those below it."""
    prefix = f"{name}." if name else ""
    for key, value in section.items():
        path = f"{prefix}{key}"
        if (path not in KEYS and name != "optimizer.params") or "." in key:
            siblings = [known for known in KEYS if known.rpartition(".")[0] == name]
            raise unknown_key(path, siblings, where)
        if value == "auto":
            raise UserError(
                f"'{path}' in {where} is \"auto\", which is Hugging Face's convention and means nothing to "
                "DeepSpeed: write the value"
            )
        kind = KEYS.get(path, Key(object))
        if path != "optimizer.type" and not kind.takes(value):
            raise UserError(f"'{path}' in {where} is {value!r}, but it must be {kind.describe()}")
        if isinstance(value, dict) and any(known.startswith(f"{path}.") for known in KEYS):
            _check_section(path, value, where)


def _check_optimizer(section: Mapping[str, Any], where: str) -> None:
    """What belongs to the optimizer of this type."""
    kind, params = section.get("type"), section.get("params", {})
    if str(kind).lower() not in OPTIMIZERS:
        raise UserError(
            f"'optimizer.type' in {where} is {kind!r}, but it must be one of {', '.join(OPTIMIZERS)}"
        )
    if known := OPTIMIZER_PARAMETERS.get(str(kind).lower()):
        for key in params:
            if key not in known:
                raise unknown_key(
                    f"optimizer.params.{key}", [f"optimizer.params.{name}" for name in sorted(known)], where
                )
    if "lr" not in params:
        raise UserError(f"{where} has no 'optimizer.params.lr': it must be {PARAMETERS['lr'].describe()}")


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
    where = config.source
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
