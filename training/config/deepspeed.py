"""The DeepSpeed JSON as one typed object: the only place that knows its keys, beside DeepSpeed itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from packaging.version import Version

from model.errors import UserError

from .batch_sizes import BATCH_SIZES, batch_sizes
from .command_line import unknown_key
from .deepspeed_checks import check_keys, check_modes
from .deepspeed_keys import ELSEWHERE, KEYS

MINIMUM_DEEPSPEED = "0.19.8"
EngineOptimizer = Literal["torch", "unfused", "bf16", "zero12", "zero3"]
_SHORT_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class DeepSpeedConfig:
    """How a run is trained: batch sizes, precision, ZeRO, optimizer.

    Attributes:
        raw: the JSON with its overrides and all three batch sizes written out: what DeepSpeed gets, and what
            the run folder keeps
        source: where it came from, for sentences about it
        notes: a sentence where an override of one batch size changed another
    """

    raw: Mapping[str, Any]
    source: str = "the DeepSpeed JSON"
    notes: tuple[str, ...] = ()

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of the JSON; empty where there is none."""
        return self.raw.get(name) or {}

    def enables(self, name: str) -> bool:
        """Whether a section is there and enabled."""
        return bool(self.section(name).get("enabled"))

    @property
    def train_batch_size(self) -> int:
        """Sequences of the global batch, of which a step is made."""
        return self.raw["train_batch_size"]

    @property
    def micro_batch(self) -> int:
        """Sequences that a rank computes at once."""
        return self.raw["train_micro_batch_size_per_gpu"]

    @property
    def accumulation(self) -> int:
        """Micro-batches of a rank per step."""
        return self.raw["gradient_accumulation_steps"]

    @property
    def precision(self) -> str:
        """What every result is stamped with: fp32, bf16, fp16, or autocast_bf16 and autocast_fp16, which have
        fp32 parameters."""
        if self.model_dtype != "fp32" or not self.enables("torch_autocast"):
            return self.model_dtype
        is_fp16 = self.dtype_of("torch_autocast", "dtype") == "fp16"
        return "autocast_fp16" if is_fp16 else "autocast_bf16"

    @property
    def model_dtype(self) -> str:
        """Of the model's parameters: fp32, bf16 or fp16."""
        return next((mode for mode in ("bf16", "fp16") if self.enables(mode)), "fp32")

    @property
    def accumulation_dtype(self) -> str:
        """In which gradients are summed over micro-batches: fp32, bf16 or fp16."""
        return self.dtype_of("data_types", "grad_accum_dtype") or self.model_dtype

    @property
    def communication_dtype(self) -> str:
        """In which gradients travel between ranks: fp32, bf16 or fp16."""
        return self.raw.get("communication_data_type") or self.model_dtype

    @property
    def reduces_linear_layers_in_half(self) -> bool:
        """Whether ZeRO reduces the gradients of linear layers in autocast's dtype, and all others in fp32.

        With an empty `torch_autocast.lower_precision_safe_modules` it reduces all in fp32.
        """
        modules = self.section("torch_autocast").get("lower_precision_safe_modules")
        return self.precision.startswith("autocast") and self.stage > 0 and modules != []

    def dtype_of(self, section: str, key: str) -> str | None:
        """A dtype that the JSON names, as fp32, bf16 or fp16."""
        dtype = self.section(section).get(key)
        return _SHORT_DTYPES.get(dtype, dtype) if dtype else None

    @property
    def stage(self) -> int:
        """ZeRO's stage; 0 is none."""
        return int(self.section("zero_optimization").get("stage", 0))

    @property
    def reduce_bucket_size(self) -> int:
        """Elements of ZeRO's reduction bucket."""
        return int(self.section("zero_optimization").get("reduce_bucket_size", 500_000_000))

    @property
    def overlaps_communication(self) -> bool:
        """Whether ZeRO-2 has two buckets, of which one is reduced while the other is filled."""
        return bool(self.section("zero_optimization").get("overlap_comm"))

    @property
    def max_live_parameters(self) -> int:
        """Elements of weights that ZeRO-3 keeps gathered at most."""
        return self._of_stage_3("max_live_parameters", 10**9)

    @property
    def sub_group_size(self) -> int:
        """Elements that ZeRO-3's optimizer updates at once."""
        return self._of_stage_3("sub_group_size", 10**9)

    def _of_stage_3(self, key: str, default: int) -> int:
        section = self.section("zero_optimization")
        return int(section.get(f"stage3_{key}", section.get(key, default)))

    def offload_device(self, what: Literal["optimizer", "param"]) -> str:
        """Where ZeRO keeps optimizer states or parameters: none (beside the model), cpu or nvme."""
        return (self.section("zero_optimization").get(f"offload_{what}") or {}).get("device", "none")

    @property
    def offloads_optimizer(self) -> bool:
        """Whether optimizer states and master weights lie in the CPU's memory."""
        return self.offload_device("optimizer") != "none"

    @property
    def optimizer(self) -> str:
        """The optimizer's name in lower case, such as adamw or muon."""
        return str(self.section("optimizer").get("type")).lower()

    @property
    def optimizer_params(self) -> Mapping[str, Any]:
        """The optimizer's settings as the JSON has them."""
        return self.section("optimizer").get("params") or {}

    @property
    def peak_lr(self) -> float:
        """The learning rate where the warm-up ends."""
        return self.optimizer_params["lr"]

    @property
    def weight_decay(self) -> float:
        """Of the parameters that decay."""
        return self.optimizer_params.get("weight_decay", 0.0)

    @property
    def engine_optimizer(self) -> EngineOptimizer:
        """What DeepSpeed wraps around the optimizer, as `DeepSpeedEngine._do_optimizer_sanity_check` decides.

        `torch` is nothing, `unfused` FP16_UnfusedOptimizer, `bf16` BF16_Optimizer (it reduces whole gradients
        at the end of the accumulation), `zero12` DeepSpeedZeroOptimizer, `zero3` its namesake of stage 3.
        """
        if self.stage == 0:
            return "torch" if self.model_dtype == "fp32" else "unfused"
        whole = self.model_dtype == "bf16" and self.accumulation_dtype == "fp32"
        if self.stage == 1 and whole and not self.offloads_optimizer:
            return "bf16"
        return "zero3" if self.stage == 3 else "zero12"

    @property
    def immediate_grad_update(self) -> bool:
        """Whether BF16_Optimizer takes each gradient over as soon as it is there."""
        return bool(self.section("bf16").get("immediate_grad_update"))

    @property
    def activation_checkpointing(self) -> Mapping[str, Any] | None:
        """The section with which blocks keep their inputs only and run again in backward; None without it."""
        return self.raw.get("activation_checkpointing")

    @property
    def load_universal(self) -> bool:
        """Whether a run may go on with another number of ranks than wrote its checkpoint."""
        return bool(self.section("checkpoint").get("load_universal"))

    @property
    def counts_flops(self) -> bool:
        """Whether DeepSpeed's profiler counts the operations of each layer."""
        return self.enables("flops_profiler")

    @property
    def logs_communication(self) -> bool:
        """Whether DeepSpeed counts what the ranks send."""
        return self.enables("comms_logger")


def read_deepspeed_config(path: Path, overrides: Mapping[str, str], ranks: int) -> DeepSpeedConfig:
    """The JSON with overrides applied and all three batch sizes written out, for so many ranks.

    What DeepSpeed's own classes check beyond the table of keys, `check_with_deepspeed` does when they have
    been imported.

    Args:
        path: the JSON file.
        overrides: dotted path in it -> value as typed, e.g. {"optimizer.params.lr": "3e-4"}.
        ranks: how many will train.

    Raises:
        UserError: JSON that does not parse, an unknown key, a value of the wrong type or out of its range, a
            section that lives in the recipe, or a DeepSpeed that is too old.
        IndivisibleBatch: batch sizes that do not divide.
    """
    if Version(installed := version("deepspeed")) < Version(MINIMUM_DEEPSPEED):
        raise UserError(
            f"DeepSpeed {installed} is installed, but {MINIMUM_DEEPSPEED} or newer is needed: older ones "
            "silently lose gradients under ZeRO-1 with bf16 and accumulation in fp32"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        raw = json.loads(text, object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON at line {error.lineno}: {error.msg}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold a JSON object, but holds {type(raw).__name__}")
    for key, value in overrides.items():
        if key.partition(".")[0] not in ELSEWHERE and key not in KEYS:
            raise unknown_key(f"ds.{key}", [f"ds.{known}" for known in KEYS], "the command line")
        _override(raw, key, value)
    config = DeepSpeedConfig(raw, f"{path} with its --ds overrides" if overrides else str(path))
    check_keys(config)
    check_modes(config)
    sizes = batch_sizes(
        {name: raw[name] for name in BATCH_SIZES if name in raw},
        overrides.keys() & set(BATCH_SIZES),
        ranks,
        config.source,
    )
    return DeepSpeedConfig(raw | sizes.values, config.source, sizes.notes)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"the DeepSpeed JSON holds the key '{key}' twice")
    return dict(pairs)


def _override(raw: dict[str, Any], path: str, text: str) -> None:
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError:
        value = text
    set_key(raw, path, value)


def set_key(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set `path.to.key` of a DeepSpeed JSON. Raises UserError where the path leads below a value."""
    *parents, leaf = path.split(".")
    section = raw
    for name in parents:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise UserError(f"--ds.{path} goes below '{name}', which is a value and not a section")
    section[leaf] = value
