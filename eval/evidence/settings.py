"""How a run was trained, beside its design and its seeds: everything that was resolved, in groups.

Two runs are compared where all groups are alike. What may differ is listed here: `FREE` does not enter the
numbers, `ROUNDING` changes them by rounding alone and is said, `RATES` may be a candidate's own and leaves no
verdict on the design. A key that is in none of the groups belongs to the last one, which must be alike.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from model import DESIGN_KEYS
from training.config.recipe import SECTIONS
from training.run.reader import read_environment, read_json, read_recipe
from training.run_files import EngineFile
from training.schedule import ScheduleConfig

Kind = Literal["fixed", "rate", "rounding"]


@dataclass(frozen=True)
class Group:
    """Settings that are told apart together.

    Attributes:
        name: the column of the table of runs.
        title: in sentences and tables.
        kind: what follows where it differs.
        prefixes: the keys of it, or how they begin.
    """

    name: str
    title: str
    kind: Kind
    prefixes: tuple[str, ...]


FREE = (
    "train.val_every", "train.checkpoint_every", "train.keep_checkpoints", "train.max_skipped_steps",
    "train.on_divergence", "train.max_rollbacks",
    "train.preflight", "train.profile_steps", "train.diagnostics",
    "train.candidate_overrides",  # what they set is not free
    "train.init_from",  # the weights themselves are compared
    "eval.", "tracking.",
    # The data are compared by what they hold.
    "data.source", "data.files", "data.subset", "data.revision", "data.split", "data.text_column",
    "data.tokenizer", "data.validation_",
    "data.workers", "data.prefetch", "data.cache_dir", "data.timeout_s",
    "ds.steps_per_print", "ds.wall_clock_breakdown", "ds.dump_state", "ds.memory_breakdown",
    "ds.comms_logger", "ds.flops_profiler", "ds.tensorboard", "ds.wandb", "ds.csv_monitor", "ds.checkpoint",
    "ds.optimizer.params.fused", "ds.optimizer.params.torch_adam", "ds.optimizer.params.foreach",
    "ds.optimizer.params.adam_w_mode",
)  # fmt: skip
"""What may differ without a word: keys of recipe and DeepSpeed JSON, or how they begin."""
PAIRED = ("train.init_seed", "data.seed")
"""What runs are paired by."""
SHAPE = ("model.n_layer", "model.n_head", "model.n_embd", "train.steps")
"""What summary.json says in words of its own, which are compared."""
GROUPS = (
    Group("learning_rate", "learning rate", "rate", ("ds.optimizer.params.lr",)),
    Group("weight_decay", "weight decay", "rate", ("ds.optimizer.params.weight_decay",)),
    Group("gradient_clipping", "gradient clipping", "rate", ("ds.gradient_clipping",)),
    Group("schedule", "schedule", "rate", ("schedule.",)),
    Group("optimizer", "optimizer", "rate", ("ds.optimizer.",)),
    Group("block_size", "block size", "fixed", ("model.block_size",)),
    Group("backbone", "fixed parts of the model", "fixed", ("model.",)),
    Group("batch", "batch size", "fixed", ("ds.train_batch_size",)),
    Group("data_order", "order and packing of the data", "fixed", ("data.",)),
    Group("compiled", "compile mode", "rounding", ("train.compile", "ds.compile")),
    Group("quantized", "quantised communication", "fixed", ("ds.zero_optimization.zero_quantized",)),
    Group(
        "engine",
        "engine",
        "rounding",
        (
            "ds.train_micro_batch_size_per_gpu", "ds.gradient_accumulation_steps", "ds.zero_optimization.",
            "train.activation_memory_budget", "ds.activation_checkpointing",
            "ds.zero_allow_untested_optimizer", "ds.zero_force_ds_cpu_optimizer", "ds.prescale_gradients",
            "ds.gradient_predivide_factor", "ds.aio",
        ),
    ),
    Group("hardware", "hardware", "rounding", ("hardware",)),
    Group("numerics", "numerics", "fixed", ("ds.bf16.", "ds.fp16.", "ds.torch_autocast.", "ds.data_types.",
                                           "ds.communication_data_type", "ds.amp")),
    Group("other", "other settings", "fixed", ("",)),
)  # fmt: skip
ABSENT = {"ds.optimizer.params.weight_decay": 0.0, "ds.gradient_clipping": 0.0}
"""What a key of the JSON that is not there stands for."""


def settings_of(folder: Path) -> dict[str, dict[str, Any]]:
    """By group what a run's resolved configs hold, `FREE`, `PAIRED` and the design left out.

    Empty without configs, as a model without a run has none.
    """
    keys = _compared_keys(folder)
    if not keys:
        return {}
    found: dict[str, dict[str, Any]] = {group.name: {} for group in GROUPS}
    for key, value in sorted(keys.items()):
        if group := group_of(key):
            found[group.name][key] = value
    return found


def resolved_keys(folder: Path) -> dict[str, Any]:
    """All that a run's resolved configs hold but the design and what is `PAIRED`, defaults filled in.

    Empty without configs.
    """
    keys = _compared_keys(folder)
    if not keys:
        return {}
    defaults = {
        f"{section}.{key}": value
        for section, kind in SECTIONS.items()
        for key, value in _defaults(kind).items()
        if section != "model" or key not in DESIGN_KEYS
    }
    return {key: value for key, value in sorted((defaults | keys).items()) if not key.startswith(PAIRED)}


def group_of(key: str) -> Group | None:
    """The group of a resolved key; None for what is `FREE` or `PAIRED`, or said by summary.json."""
    if key.startswith((*FREE, *PAIRED, *SHAPE)):
        return None
    return next(group for group in GROUPS if key.startswith(group.prefixes))


def _compared_keys(folder: Path) -> dict[str, Any]:
    """A run's resolved keys, what is at its default left out; empty without configs."""
    if not all((folder / name).exists() for name in ("recipe.yaml", "ds_config.json")):
        return {}
    keys = {
        **ABSENT,
        **_recipe_keys(read_recipe(folder)),
        **_engine_keys(read_json(folder / "ds_config.json", EngineFile)),
    }
    if environment := read_environment(folder):
        keys["hardware"] = ", ".join(sorted(set(environment.get("gpus") or ["CPU"])))
    return keys


def in_words(group: Group, settings: Mapping[str, Any]) -> str:
    """What a group holds, short: the value of a single key, the schedule in a sentence, else what is set."""
    if group.name == "schedule":
        shape = ScheduleConfig(**{key.partition(".")[2]: value for key, value in settings.items()})
        return (
            f"{shape.shape}, warm-up of {shape.warmup_steps} steps by the {shape.warmup_formula} formula, to "
            f"{shape.floor:g} of the peak" + (f", {shape.steps} steps" if shape.steps else "")
        )
    if len(settings) == 1 and settings.keys() <= set(group.prefixes):
        return as_text(*settings.values())
    parts = (f"{key.rpartition('.')[2]}={as_text(value)}" for key, value in settings.items())
    return ", ".join(parts) or ("GPT-2's parts" if group.name == "backbone" else "the usual")


def _recipe_keys(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's keys that are not at their defaults, which a run from before a key has."""
    keys = {}
    for section, kind in SECTIONS.items():
        given = recipe.get(section) or {}
        defaults = _defaults(kind)
        for key in defaults:
            if section == "model" and key in DESIGN_KEYS:
                continue
            value = given.get(key, defaults.get(key))
            if section == "schedule" or key == "block_size" or value != defaults.get(key):
                keys[f"{section}.{key}"] = value
    schedule = ScheduleConfig(**recipe.get("schedule") or {})
    length = schedule.steps or (recipe.get("train") or {}).get("steps")
    if length:  # a share of the steps and their number are the same warm-up
        whole = ScheduleConfig(**asdict(schedule) | {"steps": length})
        keys |= {"schedule.steps": length, "schedule.warmup": whole.warmup_steps}
    return keys


def _defaults(kind: type) -> dict[str, Any]:
    """Of a section of the recipe, as YAML would hold them."""
    return {
        field.name: list(value) if isinstance(value := getattr(kind(), field.name), tuple) else value
        for field in fields(kind)
    }


def _engine_keys(engine: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON's keys; a section that is not enabled is as one that is not there."""
    return {
        f"ds.{key}": value.lower() if key == "optimizer.type" else value
        for key, value in _flat(engine).items()
        if not key.endswith(".enabled") or value
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if value.get("enabled", True):
                flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def as_text(value: object) -> str:
    """A key's value, as YAML would have it."""
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
