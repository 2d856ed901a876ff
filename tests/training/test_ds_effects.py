"""Keys without effect: one sentence each, and DeepSpeed's constructors, which do not take them."""

import inspect
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from training.config import DeepSpeedConfig, ineffective_keys, read_deepspeed_config
from training.config import deepspeed_effects as module
from training.engine.ranks import deepspeed

ROOT = Path(__file__).resolve().parents[2]
BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
AUTOCAST = {"torch_autocast": {"enabled": True}}
WHOLE = "reduces whole gradients at the end of the accumulation"
REFERENCE = BF16 | {"zero_optimization": {"stage": 1}}


def zero(stage: int, *sections: dict[str, Any], **keys: Any) -> dict[str, Any]:
    config: dict[str, Any] = {"zero_optimization": {"stage": stage} | keys}
    for section in sections:
        config |= section
    return config


OFFLOAD = {"offload_optimizer": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("config", "key", "reason"),
    [
        (zero(1, BF16, overlap_comm=True), "zero_optimization.overlap_comm", WHOLE),
        (zero(1, BF16, reduce_bucket_size=9), "zero_optimization.reduce_bucket_size", WHOLE),
        (zero(1, BF16, reduce_scatter=True), "zero_optimization.reduce_scatter", WHOLE),
        (zero(1, BF16, contiguous_gradients=True), "zero_optimization.contiguous_gradients", WHOLE),
        (zero(1, BF16, round_robin_gradients=True), "zero_optimization.round_robin_gradients", WHOLE),
        (zero(1, BF16, parameter_alignment=True), "zero_optimization.parameter_alignment", WHOLE),
        (zero(2, BF16, allgather_partitions=True), "zero_optimization.allgather_partitions", "nowhere"),
        (zero(0, overlap_comm=True), "zero_optimization.overlap_comm", "stage is 0"),
        (zero(0, allgather_bucket_size=9), "zero_optimization.allgather_bucket_size", "stage is 0"),
        (zero(2, offload_param={}), "zero_optimization.offload_param", "ZeRO-3"),
        (zero(1, stage3_max_live_parameters=9), "zero_optimization.stage3_max_live_parameters", "ZeRO-3"),
        (zero(2, sub_group_size=9), "zero_optimization.sub_group_size", "ZeRO-3"),
        (zero(3, stage3_gather_16bit_weights_on_model_save=True),
         "zero_optimization.stage3_gather_16bit_weights_on_model_save", "fp32 weights"),
        (zero(3, round_robin_gradients=True), "zero_optimization.round_robin_gradients", "ZeRO-1 and ZeRO-2"),
        (zero(3, allgather_bucket_size=9), "zero_optimization.allgather_bucket_size", "ZeRO-1 and ZeRO-2"),
        (zero(2, contiguous_gradients=False, **OFFLOAD), "zero_optimization.contiguous_gradients", "always"),
        (zero(2, offload_optimizer={"device": "cpu", "buffer_count": 4}),
         "zero_optimization.offload_optimizer.buffer_count", "NVMe"),
        (zero(2, offload_optimizer={"device": "cpu", "ratio": 0.5}),
         "zero_optimization.offload_optimizer.ratio", "ZeRO-3"),
        (zero(1, {"prescale_gradients": True}), "prescale_gradients", "reduce_scatter false"),
        (zero(1, {"gradient_predivide_factor": 2.0}), "gradient_predivide_factor", "reduce_scatter false"),
        (zero(1, AUTOCAST, {"communication_data_type": "fp32"}), "communication_data_type", "autocast dtype"),
        (zero(2, {"data_types": {"grad_accum_dtype": "bf16"}}), "data_types.grad_accum_dtype", "in fp32"),
        (zero(1, {"data_types": {"param_dtype": "fp32"}}), "data_types.param_dtype", "sections decide"),
        (zero(1, {"data_types": {"buffer_dtype": "bf16"}}), "data_types.buffer_dtype", "nothing is cast"),
        (zero(1, AUTOCAST, {"data_types": {"keep_in_fp32_modules": ["x"]}}),
         "data_types.keep_in_fp32_modules", "nothing is cast"),
        (zero(1, {"bf16": {"enabled": False, "check_grad_overflow": True}}),
         "bf16.check_grad_overflow", "bf16.enabled is not true"),
        (zero(1, {"fp16": {"loss_scale": 1.0}}), "fp16.loss_scale", "fp16.enabled is not true"),
        (zero(1, {"torch_autocast": {"dtype": "bfloat16"}}), "torch_autocast.dtype", "is not true"),
        (zero(1, BF16 | {"bf16": {"enabled": True, "check_grad_overflow": False}}),
         "bf16.check_grad_overflow", "always skipped"),
        (zero(3, {"bf16": {"enabled": True, "check_grad_overflow": False}}),
         "bf16.check_grad_overflow", "always skipped"),
        (zero(2, BF16 | {"bf16": {"enabled": True, "immediate_grad_update": True}}),
         "bf16.immediate_grad_update", "ZeRO-1"),
        (zero(1, {"compile": {"deepcompile": True}}), "compile.deepcompile", "train.compile"),
        (zero(1, {"activation_checkpointing": {"number_checkpoints": 3}}),
         "activation_checkpointing.number_checkpoints", "torch.utils.checkpoint"),
        (zero(1, {"flops_profiler": {"profile_step": 3}}), "flops_profiler.profile_step", "is not true"),
        (zero(1, {"comms_logger": {"verbose": True}}), "comms_logger.verbose", "is not true"),
        (zero(1, {"comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]}}),
         "comms_logger.prof_ops", "prof_all"),
        (zero(1, {"aio": {"queue_depth": 4}}), "aio", "NVMe"),
        (zero(1, {"checkpoint": {"parallel_write": {"pipeline_stage": True}}}),
         "checkpoint.parallel_write", "pipeline"),
        (zero(1, {"zero_force_ds_cpu_optimizer": False}), "zero_force_ds_cpu_optimizer", "from the JSON"),
        (zero(1, {"zero_allow_untested_optimizer": True}), "zero_allow_untested_optimizer", "from the JSON"),
        (zero(0, {"optimizer": {"type": "Muon", "params": {"torch_adam": True}}}),
         "optimizer.params.torch_adam", "torch's AdamW"),
        (zero(1, {"optimizer": {"type": "AdamW", "params": {"adam_w_mode": False}}}),
         "optimizer.params.adam_w_mode", "AdamW"),
    ],
)  # fmt: skip
def test_a_key_without_effect_gets_one_sentence(config: dict[str, Any], key: str, reason: str) -> None:
    (sentence,) = ineffective_keys(DeepSpeedConfig(config))
    assert sentence.startswith(f"'{key}' has no effect: ") and reason in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    "config",
    [
        zero(
            2, BF16, overlap_comm=True, reduce_bucket_size=9, reduce_scatter=True, contiguous_gradients=True
        ),
        zero(
            3, BF16, overlap_comm=True, stage3_prefetch_bucket_size=9, reduce_bucket_size=9, sub_group_size=9
        ),
        zero(3, offload_optimizer={"device": "cpu", "ratio": 0.5}, offload_param={"device": "cpu"}),
        zero(1, {"bf16": {"enabled": True}}, reduce_bucket_size=9, round_robin_gradients=True),
        zero(1, BF16, allgather_bucket_size=9),
        zero(1, BF16 | {"bf16": {"enabled": True, "immediate_grad_update": True}}),
        zero(0, AUTOCAST, {"communication_data_type": "bf16"}),
        zero(1, reduce_scatter=False) | {"prescale_gradients": True},
        zero(1, {"activation_checkpointing": {"cpu_checkpointing": True}}),
        zero(1, {"steps_per_print": 10, "wall_clock_breakdown": True, "gradient_clipping": 1.0}),
        zero(1, {"comms_logger": {"enabled": True, "prof_all": False, "prof_ops": ["all_reduce"]}}),
    ],
)
def test_of_keys_with_an_effect_nothing_is_said(config: dict[str, Any]) -> None:
    assert ineffective_keys(DeepSpeedConfig(config)) == []


def test_our_files_say_what_they_must_and_no_more() -> None:
    """zero1_autocast.json writes its communication dtype out, because stage 0 would heed it."""
    said = {
        path.stem: ineffective_keys(read_deepspeed_config(path, {}, 2))
        for path in (ROOT / "ds_configs").glob("*.json")
    }
    assert {name for name, sentences in said.items() if sentences} == {"zero1_autocast"}
    (sentence,) = said["zero1_autocast"]
    assert "'communication_data_type'" in sentence


def taken_by(optimizer: type) -> set[str]:
    return set(inspect.signature(optimizer.__init__).parameters)


def test_deepspeeds_constructors_do_not_take_keys_without_effect() -> None:
    assert not taken_by(BF16_Optimizer) & (
        module._REDUCTION | module._STAGE_1_AND_2_ONLY | {"check_grad_overflow", "offload_optimizer_config"}
    )
    assert "allgather_bucket_size" in taken_by(BF16_Optimizer)
    assert not taken_by(DeepSpeedZeroOptimizer) & module._STAGE_3_ONLY
    assert taken_by(DeepSpeedZeroOptimizer) >= module._REDUCTION | module._STAGE_1_AND_2_ONLY
    assert not taken_by(DeepSpeedZeroOptimizer_Stage3) & (
        module._STAGE_1_AND_2_ONLY | {"allgather_bucket_size", "check_grad_overflow"}
    )
    assert taken_by(DeepSpeedZeroOptimizer_Stage3) >= module._REDUCTION


def test_deepspeed_reads_allgather_partitions_nowhere() -> None:
    folder = Path(deepspeed.__file__).parent
    found = subprocess.run(
        ["grep", "-rn", "--include=*.py", "allgather_partitions", str(folder / "runtime")],
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert all("zero/config.py" in line or "runtime/engine.py" in line for line in found)
    in_engine = [line for line in found if "runtime/engine.py" in line]
    assert len(in_engine) == 2  # a getter that nothing calls


def test_every_zero_key_is_placed_or_known_to_work() -> None:
    """A key that a newer DeepSpeed adds must be looked at."""
    fields = set(deepspeed.runtime.zero.config.DeepSpeedZeroConfig.model_fields)
    fields = {name.removeprefix("stage3_") for name in fields}
    effective = {
        "stage", "allgather_bucket_size", "compute_grad_norm", "load_from_fp32_weights", "elastic_checkpoint",
        "offload_optimizer", "zenflow", "cpu_offload_param", "cpu_offload_use_pin_memory", "cpu_offload",
        "legacy_stage1",
    }  # fmt: skip
    placed = module._STAGE_3_ONLY | module._STAGE_1_AND_2_ONLY | module._REDUCTION | set(module._NEVER)
    assert fields == placed | effective


def test_json_and_python_agree(tmp_path: Path) -> None:
    """What the resolved config holds is enough: nothing of it depends on where it came from."""
    path = tmp_path / "ds.json"
    adamw = {"type": "AdamW", "params": {"lr": 1e-3}}
    path.write_text(json.dumps(REFERENCE | {"train_batch_size": 8, "optimizer": adamw}))
    config = read_deepspeed_config(path, {"zero_optimization.overlap_comm": "true"}, 2)
    (sentence,) = ineffective_keys(config)
    assert sentence == (
        "'zero_optimization.overlap_comm' has no effect: with bf16 and data_types.grad_accum_dtype fp32, "
        "ZeRO-1 reduces whole gradients at the end of the accumulation"
    )
