"""The keys that NormLab takes in a DeepSpeed JSON, and what each of them may hold.

DeepSpeed 0.19.8 ignores unknown keys at the top level and in several sections, so that a misspelt key would
silently train something else. Its own classes know the keys of the others, but cost seconds to import: what
stands here is a copy of them, and a test holds it to the original.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Key:
    """What a key of a section may hold, as DeepSpeed's own class says.

    Attributes:
        kind: bool, int, float, list or dict; a tuple of all values where there are only so many; object where
            it is left to DeepSpeed
        at_least: of a number
        above: of a number
        at_most: of a number
        or_null: whether null is allowed, too
    """

    kind: Any
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    or_null: bool = False

    def mistake(self, value: Any) -> str | None:
        """What is wrong with a value, in DeepSpeed's words; None where nothing is wrong.

        A text in place of a number or a truth value is left to DeepSpeed, which reads some of them.
        """
        if self.kind is object or (value is None and self.or_null):
            return None
        if isinstance(self.kind, tuple):
            known = [str(choice) if isinstance(choice, int) else f"'{choice}'" for choice in self.kind]
            listed = f"{', '.join(known[:-1])} or {known[-1]}"
            return None if value in (*self.kind, *_as_texts(self.kind)) else f"input should be {listed}"
        if self.kind in (list, dict):
            valid = "a valid list" if self.kind is list else "a valid dictionary"
            return None if isinstance(value, self.kind) else f"input should be {valid}"
        if isinstance(value, str):
            return None
        if self.kind is bool:
            return None if value in (True, False) else "input should be a valid boolean"
        return self._mistake_in_number(value)

    def _mistake_in_number(self, value: Any) -> str | None:
        if not isinstance(value, (int, float)):
            return f"input should be a valid {'integer' if self.kind is int else 'number'}"
        if self.kind is int and isinstance(value, float) and not value.is_integer():
            return "input should be a valid integer"
        if self.above is not None and not value > self.above:
            return f"input should be greater than {self.above:g}"
        if self.at_least is not None and not value >= self.at_least:
            return f"input should be greater than or equal to {self.at_least:g}"
        if self.at_most is not None and not value <= self.at_most:
            return f"input should be less than or equal to {self.at_most:g}"
        return None


def _as_texts(choices: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(map(str, choices))


_SWITCH = Key(bool)
_COUNT = Key(int, at_least=0)
_SHARE = Key(float, at_least=0, at_most=1)
_DEVICE = Key(("none", "cpu", "nvme"))
_PATH = Key(object)

CHECKED_SECTIONS: dict[str, dict[str, Key]] = {
    "zero_optimization": {
        "stage": Key((0, 1, 2, 3)),
        "contiguous_gradients": _SWITCH,
        "reduce_scatter": _SWITCH,
        "reduce_bucket_size": Key(int, above=0),
        "use_multi_rank_bucket_allreduce": _SWITCH,
        "allgather_partitions": _SWITCH,
        "allgather_bucket_size": _COUNT,
        "overlap_comm": Key(bool, or_null=True),
        "compute_grad_norm": _SWITCH,
        "load_from_fp32_weights": _SWITCH,
        "elastic_checkpoint": _SWITCH,
        "offload_param": Key(dict, or_null=True),
        "offload_optimizer": Key(dict, or_null=True),
        "zenflow": Key(dict, or_null=True),
        "sub_group_size": _COUNT,
        "cpu_offload_param": Key(bool, or_null=True),
        "cpu_offload_use_pin_memory": Key(bool, or_null=True),
        "cpu_offload": Key(bool, or_null=True),
        "prefetch_bucket_size": _COUNT,
        "param_persistence_threshold": _COUNT,
        "model_persistence_threshold": _COUNT,
        "max_live_parameters": _COUNT,
        "max_reuse_distance": _COUNT,
        "gather_16bit_weights_on_model_save": _SWITCH,
        "module_granularity_threshold": Key(int),
        "use_all_reduce_for_fetch_params": _SWITCH,
        "allgather_sequential": _SWITCH,
        "stage3_gather_fp16_weights_on_model_save": _SWITCH,
        "ignore_unused_parameters": _SWITCH,
        "legacy_stage1": _SWITCH,
        "round_robin_gradients": _SWITCH,
        "parameter_alignment": _SWITCH,
        "zero_hpz_partition_size": _COUNT,
        "zero_quantized_weights": _SWITCH,
        "zero_quantized_nontrainable_weights": _SWITCH,
        "zero_quantized_gradients": _SWITCH,
        "memory_efficient_linear": _SWITCH,
        "pipeline_loading_checkpoint": _SWITCH,
        "override_module_apply": _SWITCH,
        "log_trace_cache_warnings": _SWITCH,
        "enable_sanity_checks": _SWITCH,
        "save_muon_momentum_buffer_in_memory": _SWITCH,
        "leaf_module": Key(dict, or_null=True),
    },
    "bf16": {
        "enabled": _SWITCH,
        "immediate_grad_update": _SWITCH,
        "check_grad_overflow": _SWITCH,
        "bf16_master_weights_and_grads": _SWITCH,
        "bf16_optimizer_states": _SWITCH,
    },
    "fp16": {
        "enabled": _SWITCH,
        "auto_cast": _SWITCH,
        "loss_scale": Key(object),
        "initial_scale_power": Key(int),
        "loss_scale_window": Key(int),
        "hysteresis": Key(int),
        "consecutive_hysteresis": _SWITCH,
        "min_loss_scale": Key(int),
        "fp16_master_weights_and_grads": _SWITCH,
    },
    "comms_logger": {
        "enabled": _SWITCH,
        "prof_all": _SWITCH,
        "prof_ops": Key(list),
        "verbose": _SWITCH,
        "debug": _SWITCH,
    },
    "compile": {
        "deepcompile": _SWITCH,
        "autoep_non_moe": _SWITCH,
        "free_activation": _SWITCH,
        "free_activation_threshold": Key(int),
        "offload_activation": _SWITCH,
        "offload_activation_pin_memory": _SWITCH,
        "offload_opt_states": _SWITCH,
        "double_buffer": _SWITCH,
        "symmetric_memory": _SWITCH,
        "debug_log": _SWITCH,
        "offload_parameters": _SWITCH,
        "sync_before_reduce": _SWITCH,
        "sync_after_reduce": _SWITCH,
        "sync_before_allgather": _SWITCH,
        "sync_after_allgather": _SWITCH,
        "keep_int_input_tensors": _SWITCH,
        "keep_all_input_tensors": _SWITCH,
        "passes": Key(list, or_null=True),
    },
}
"""Sections that DeepSpeed has a class for."""
ALIASES = {
    f"stage3_{name}": name
    for name in (
        "prefetch_bucket_size", "param_persistence_threshold", "model_persistence_threshold",
        "max_live_parameters", "max_reuse_distance", "gather_16bit_weights_on_model_save",
        "module_granularity_threshold", "use_all_reduce_for_fetch_params", "allgather_sequential",
    )
}  # fmt: skip
"""Other names of keys of `zero_optimization`: the ones that people use."""
CHECKED_SUBSECTIONS: dict[str, dict[str, Key]] = {
    "offload_param": {
        "device": _DEVICE,
        "nvme_path": _PATH,
        "buffer_count": _COUNT,
        "buffer_size": _COUNT,
        "max_in_cpu": _COUNT,
        "pin_memory": _SWITCH,
    },
    "offload_optimizer": {
        "device": _DEVICE,
        "nvme_path": _PATH,
        "buffer_count": _COUNT,
        "pin_memory": _SWITCH,
        "pipeline_read": _SWITCH,
        "pipeline_write": _SWITCH,
        "fast_init": _SWITCH,
        "ratio": _SHARE,
        "super_offload": _SWITCH,
        "cpuadam_cores_perc": _SHARE,
    },
}
"""Sections within `zero_optimization`."""
OTHER_SECTIONS: dict[str, set[str]] = {
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
"""Sections whose keys DeepSpeed reads one by one."""
VALUES: dict[str, Any] = {
    "train_batch_size": int,
    "train_micro_batch_size_per_gpu": int,
    "gradient_accumulation_steps": int,
    "gradient_clipping": float,
    "communication_data_type": str,
    "prescale_gradients": bool,
    "gradient_predivide_factor": float,
    "steps_per_print": int | None,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "disable_python_gc": bool,
    "zero_allow_untested_optimizer": bool,
    "zero_force_ds_cpu_optimizer": bool,
    "log_level": str,
}
"""Keys at the top that are no sections, with their types."""
ELSEWHERE = {
    "scheduler": "the learning-rate schedule is the recipe's: set it in its 'schedule' section",
    "wandb": "tracking is the recipe's: set it in its 'tracking' section",
    "tensorboard": "metrics go to metrics.jsonl and W&B: set tracking in the recipe's 'tracking' section",
    "csv_monitor": "metrics go to metrics.jsonl and W&B: set tracking in the recipe's 'tracking' section",
}
"""Sections that DeepSpeed has, and what stands in their place."""

OPTIMIZERS = ("adagrad", "adam", "adamw", "lamb", "muadam", "muadamw", "musgd", "lion", "muon")
"""What DeepSpeed builds by name; the JSON writes them in upper case or lower."""
TORCHS_PARAMETERS = {"amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused"}
ADAM_PARAMETERS = {"lr", "betas", "eps", "weight_decay", "torch_adam", "adam_w_mode"} | TORCHS_PARAMETERS
MUON_PARAMETERS = {
    "lr", "muon_lr", "adam_lr", "momentum", "ns_method", "betas", "eps", "weight_decay", "torch_adam",
    "fused",
}  # fmt: skip
OPTIMIZER_PARAMETERS = {"adam": ADAM_PARAMETERS, "adamw": ADAM_PARAMETERS, "muon": MUON_PARAMETERS}
"""By optimizer; those of the others are left to them."""

KNOWN = (
    *VALUES,
    *OTHER_SECTIONS,
    *(f"{name}.{key}" for name, keys in OTHER_SECTIONS.items() for key in sorted(keys)),
    *CHECKED_SECTIONS,
    *(f"{name}.{key}" for name, keys in CHECKED_SECTIONS.items() for key in keys),
    *(f"zero_optimization.{alias}" for alias in ALIASES),
    *(f"optimizer.params.{key}" for key in sorted(ADAM_PARAMETERS | MUON_PARAMETERS)),
)
"""Every key as a dotted path."""
