"""Keys of a DeepSpeed config that do nothing in its mode, and why, by DeepSpeed 0.19.8's source."""

from .deepspeed import DeepSpeedConfig

_STAGE_3_ONLY = {
    "offload_param", "sub_group_size", "prefetch_bucket_size", "param_persistence_threshold",
    "model_persistence_threshold", "max_live_parameters", "max_reuse_distance",
    "module_granularity_threshold", "use_all_reduce_for_fetch_params", "allgather_sequential",
    "zero_hpz_partition_size",
    "zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients",
    "memory_efficient_linear", "pipeline_loading_checkpoint", "log_trace_cache_warnings",
    "enable_sanity_checks", "save_muon_momentum_buffer_in_memory", "leaf_module",
}  # fmt: skip
_STAGE_1_AND_2_ONLY = {
    "use_multi_rank_bucket_allreduce", "round_robin_gradients", "parameter_alignment",
    "ignore_unused_parameters",
}  # fmt: skip
_REDUCTION = {"contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "overlap_comm"}
_NEVER = {
    "allgather_partitions": "DeepSpeed reads it nowhere",
    "gather_16bit_weights_on_model_save": "checkpoints hold the fp32 weights, not another 16-bit copy",
    "gather_fp16_weights_on_model_save": "checkpoints hold the fp32 weights, not another 16-bit copy",
    "override_module_apply": "it is for models built inside deepspeed.zero.Init, and this one is not",
}
_NVME_ONLY = {
    "nvme_path",
    "buffer_count",
    "buffer_size",
    "max_in_cpu",
    "pipeline_read",
    "pipeline_write",
    "fast_init",
}
_OFFLOAD_STAGE_3_ONLY = {"ratio", "super_offload", "cpuadam_cores_perc"}


def ineffective_keys(config: DeepSpeedConfig) -> list[str]:
    """One sentence for each key that `config` sets and that has no effect in its mode, with the reason."""
    notes = _of_zero(config) | _of_precision(config) | _of_optimizer(config)
    for key in config.section("activation_checkpointing"):
        if key != "cpu_checkpointing":
            notes[f"activation_checkpointing.{key}"] = "blocks are recomputed by torch.utils.checkpoint"
    for key in config.section("compile"):
        notes[f"compile.{key}"] = (
            "it is DeepCompile's, which is not started: train.compile compiles the blocks"
        )
    for section in ("flops_profiler", "comms_logger"):
        if not config.enables(section):
            notes |= _others(config, section, f"{section}.enabled is not true")
    logger = config.section("comms_logger")
    if config.logs_communication and "prof_ops" in logger and logger.get("prof_all", True):
        notes["comms_logger.prof_ops"] = "comms_logger.prof_all logs every operation"
    if "aio" in config.raw:
        notes["aio"] = "nothing is offloaded to NVMe"
    if "parallel_write" in config.section("checkpoint"):
        notes["checkpoint.parallel_write"] = "it is for pipeline parallelism"
    return [f"'{key}' has no effect: {reason}" for key, reason in notes.items()]


def _others(config: DeepSpeedConfig, section: str, reason: str) -> dict[str, str]:
    return {f"{section}.{key}": reason for key in config.section(section) if key != "enabled"}


def _of_zero(config: DeepSpeedConfig) -> dict[str, str]:
    section = config.section("zero_optimization")
    stage, whole = config.stage, config.engine_optimizer == "bf16"
    at_the_end = (
        "with bf16 and data_types.grad_accum_dtype fp32, ZeRO-1 reduces whole gradients at the end of the "
        "accumulation"
    )
    notes: dict[str, str] = {}
    for written in section:
        key = written.removeprefix("stage3_")
        reason = None
        if key in _NEVER:
            reason = _NEVER[key]
        elif key != "stage" and stage == 0:
            reason = "zero_optimization.stage is 0"
        elif key in _STAGE_3_ONLY and stage < 3:
            reason = f"it is for ZeRO-3, and zero_optimization.stage is {stage}"
        elif key in _STAGE_1_AND_2_ONLY | {"allgather_bucket_size"} and stage == 3:
            reason = "it is for ZeRO-1 and ZeRO-2, and zero_optimization.stage is 3"
        elif key in _REDUCTION | _STAGE_1_AND_2_ONLY and whole:
            reason = at_the_end
        elif key == "contiguous_gradients" and stage < 3 and config.offloads_optimizer:
            reason = "with offload_optimizer gradients are always contiguous"
        if reason:
            notes[f"zero_optimization.{written}"] = reason
    if stage > 0:
        for key in section.get("offload_optimizer") or {}:
            if key in _NVME_ONLY or (key in _OFFLOAD_STAGE_3_ONLY and stage < 3):
                reason = (
                    "it is for NVMe" if key in _NVME_ONLY else f"it is for ZeRO-3, and this is ZeRO-{stage}"
                )
                notes[f"zero_optimization.offload_optimizer.{key}"] = reason
    if stage == 1 and not whole and section.get("reduce_scatter", True):
        for key in ("prescale_gradients", "gradient_predivide_factor"):
            if key in config.raw:
                notes[key] = "ZeRO-1 looks at it only with zero_optimization.reduce_scatter false"
    return notes


def _of_precision(config: DeepSpeedConfig) -> dict[str, str]:
    mode, stage = config.precision, config.stage
    notes: dict[str, str] = {}
    for section in ("bf16", "fp16", "torch_autocast"):
        if not config.enables(section):
            notes |= _others(config, section, f"{section}.enabled is not true")
    whole = config.engine_optimizer == "bf16"
    if mode == "bf16":
        if "immediate_grad_update" in config.section("bf16") and not whole:
            notes["bf16.immediate_grad_update"] = (
                "it is for ZeRO-1 with data_types.grad_accum_dtype fp32 and without offload"
            )
        if "check_grad_overflow" in config.section("bf16") and (whole or stage in (0, 3)):
            notes["bf16.check_grad_overflow"] = "a step that is not finite is always skipped in this mode"
    if mode.startswith("autocast") and stage > 0 and "communication_data_type" in config.raw:
        notes["communication_data_type"] = (
            "with torch_autocast, ZeRO reduces the gradients of linear layers in the autocast dtype and all "
            "others in fp32"
        )
    types = config.section("data_types")
    if "param_dtype" in types:
        notes["data_types.param_dtype"] = "the 'bf16' and 'fp16' sections decide"
    if mode not in ("bf16", "fp16"):
        for key in ("buffer_dtype", "keep_in_fp32_modules"):
            if key in types:
                notes[f"data_types.{key}"] = "nothing is cast, because neither bf16 nor fp16 is enabled"
        if stage == 2 and config.accumulation_dtype != "fp32":
            notes["data_types.grad_accum_dtype"] = (
                "ZeRO-2 accumulates the gradients of fp32 parameters in fp32"
            )
    return notes


def _of_optimizer(config: DeepSpeedConfig) -> dict[str, str]:
    kind, params = config.optimizer, config.optimizer_params
    notes: dict[str, str] = {}
    if kind == "muon" and "torch_adam" in params:
        notes["optimizer.params.torch_adam"] = "what is not Muon's always has torch's AdamW"
    if kind == "adamw" and "adam_w_mode" in params:
        notes["optimizer.params.adam_w_mode"] = "the type is AdamW"
    for key in ("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"):
        if key in config.raw:
            notes[key] = "it is for optimizers that do not come from the JSON"
    return notes
