"""The keys that NormLab takes in a DeepSpeed JSON, and what each of them may hold.

DeepSpeed 0.19.8 ignores unknown keys at the top level and in several sections, so that a misspelt key would
silently train something else. Its own classes know the keys of the others, but cost seconds to import: what
stands here is a copy of them, and a test holds it to the original.
"""

from model.values import Range

from .json_key import Key, below

_SWITCH = Key(bool)
_EXACT_SWITCH = Key(bool, strict=True)
_COUNT = Key(int, Range(at_least=0))
_FROM_1 = Key(int, Range(at_least=1), strict=True)
_SHARE = Key(float, Range(at_least=0, at_most=1))
_NOT_NEGATIVE = Key(float, Range(at_least=0), strict=True)
_POSITIVE = Key(float, Range(above=0), strict=True)
_DEVICE = Key(("none", "cpu", "nvme"))
_PATH = Key(object)
_DTYPE = Key(("fp32", "fp16", "bf16", "float32", "float16", "bfloat16"), or_null=True, strict=True)

CHECKED_SECTIONS: dict[str, dict[str, Key]] = {
    "zero_optimization": {
        "stage": Key((0, 1, 2, 3)),
        "contiguous_gradients": _SWITCH,
        "reduce_scatter": _SWITCH,
        "reduce_bucket_size": Key(int, Range(above=0)),
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
        "module_granularity_threshold": _COUNT,
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
        "enabled": _EXACT_SWITCH,
        "immediate_grad_update": _SWITCH,
        "check_grad_overflow": _SWITCH,
        "bf16_master_weights_and_grads": _SWITCH,
        "bf16_optimizer_states": _SWITCH,
    },
    "fp16": {
        "enabled": _EXACT_SWITCH,
        "auto_cast": _SWITCH,
        "loss_scale": Key(float, Range(at_least=0)),  # 0 adapts it
        "initial_scale_power": Key(int, Range(at_least=0, at_most=127)),  # of 2, in fp32
        "loss_scale_window": Key(int, Range(at_least=1)),
        "hysteresis": Key(int, Range(at_least=1)),
        "consecutive_hysteresis": _SWITCH,
        "min_loss_scale": Key(int, Range(at_least=1)),
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
        "free_activation_threshold": _COUNT,
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
OTHER_SECTIONS: dict[str, dict[str, Key]] = {
    "torch_autocast": {
        "enabled": _EXACT_SWITCH,
        "dtype": _DTYPE,
        "lower_precision_safe_modules": Key(list, or_null=True),
    },
    "data_types": {
        "grad_accum_dtype": _DTYPE,
        "param_dtype": _DTYPE,
        "buffer_dtype": _DTYPE,
        "keep_in_fp32_modules": Key(object),
    },
    "optimizer": {"type": Key(str), "params": Key(dict)},
    "checkpoint": {
        "tag_validation": Key(str),
        "load_universal": _EXACT_SWITCH,
        "use_node_local_storage": _EXACT_SWITCH,
        "parallel_write": Key(dict),
        "writer": Key(dict, or_null=True),
    },
    "activation_checkpointing": {
        "partition_activations": _EXACT_SWITCH,
        "cpu_checkpointing": _EXACT_SWITCH,
        "contiguous_memory_optimization": _EXACT_SWITCH,
        "number_checkpoints": Key(int, Range(at_least=1), or_null=True, strict=True),
        "synchronize_checkpoint_boundary": _EXACT_SWITCH,
        "profile": _EXACT_SWITCH,
    },
    "flops_profiler": {
        "enabled": _EXACT_SWITCH,
        "recompute_fwd_factor": _NOT_NEGATIVE,
        "profile_step": _FROM_1,
        "module_depth": Key(int, Range(at_least=-1), strict=True),  # -1 is all
        "top_modules": _FROM_1,
        "detailed": _EXACT_SWITCH,
        "output_file": _PATH,
    },
    "aio": {
        "block_size": _FROM_1,
        "queue_depth": _FROM_1,
        "intra_op_parallelism": _FROM_1,
        "single_submit": _EXACT_SWITCH,
        "overlap_events": _EXACT_SWITCH,
        "use_gds": _EXACT_SWITCH,
    },
    "timers": {"throughput": Key(dict)},
}
"""Sections whose keys DeepSpeed reads one by one, as they are."""
VALUES: dict[str, Key] = {
    "train_batch_size": _FROM_1,
    "train_micro_batch_size_per_gpu": _FROM_1,
    "gradient_accumulation_steps": _FROM_1,
    "gradient_clipping": _NOT_NEGATIVE,  # 0 is off
    "communication_data_type": Key(("fp32", "fp16", "bf16"), strict=True),
    "prescale_gradients": _EXACT_SWITCH,
    "gradient_predivide_factor": _POSITIVE,
    "steps_per_print": Key(int, Range(at_least=1), or_null=True, strict=True),
    "wall_clock_breakdown": _EXACT_SWITCH,
    "memory_breakdown": _EXACT_SWITCH,
    "dump_state": _EXACT_SWITCH,
    "disable_python_gc": _EXACT_SWITCH,
    "zero_allow_untested_optimizer": _EXACT_SWITCH,
    "zero_force_ds_cpu_optimizer": _EXACT_SWITCH,
    "log_level": Key(str),
}
"""Keys at the top that are no sections."""
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
PARAMETERS: dict[str, Key] = {
    "lr": _POSITIVE,
    "muon_lr": _NOT_NEGATIVE,
    "adam_lr": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "eps": _POSITIVE,
    "betas": Key(list, Range(at_least=0, below=1), length=2),
    "momentum": Key(float, Range(at_least=0, below=1), strict=True),
    "ns_method": Key(("gram", "standard"), strict=True),
    "torch_adam": _EXACT_SWITCH,
    "adam_w_mode": _EXACT_SWITCH,
} | dict.fromkeys(sorted(TORCHS_PARAMETERS), Key(bool, or_null=True, strict=True))
"""What `optimizer.params` may hold: of another optimizer's own parameters only that they are finite."""
ADAM_PARAMETERS = {"lr", "betas", "eps", "weight_decay", "torch_adam", "adam_w_mode"} | TORCHS_PARAMETERS
MUON_PARAMETERS = {
    "lr", "muon_lr", "adam_lr", "momentum", "ns_method", "betas", "eps", "weight_decay", "torch_adam",
    "fused",
}  # fmt: skip
OPTIMIZER_PARAMETERS = {"adam": ADAM_PARAMETERS, "adamw": ADAM_PARAMETERS, "muon": MUON_PARAMETERS}
"""By optimizer; those of the others are left to them."""

_SECTIONS = OTHER_SECTIONS | CHECKED_SECTIONS
KEYS: dict[str, Key] = (
    VALUES
    | dict.fromkeys(_SECTIONS, Key(dict))
    | {path: key for name, keys in _SECTIONS.items() for path, key in below(name, keys).items()}
    | {
        path: key
        for name, keys in CHECKED_SUBSECTIONS.items()
        for path, key in below(f"zero_optimization.{name}", keys).items()
    }
    | {
        f"zero_optimization.{alias}": CHECKED_SECTIONS["zero_optimization"][name]
        for alias, name in ALIASES.items()
    }
    | below("optimizer.params", PARAMETERS)
)
"""Every key, by its dotted path."""
