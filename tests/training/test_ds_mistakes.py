"""The sentence for every mistake in a DeepSpeed JSON or in what overrides it."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.training.ds_configs import BF16, GOOD, adamw, muon, refusal, zero


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        # Not JSON, or not an object
        ('{\n "train_batch_size": 8,\n "optimizer": {,}\n}', ["ds.json", "not valid JSON", "line 3"]),
        ('{"train_batch_size": 8', ["not valid JSON", "line 1"]),
        ("[1]", ["ds.json", "object", "list"]),
        ('{"train_batch_size": 8, "train_batch_size": 16}', ["'train_batch_size' twice"]),
        ('{"bf16": {"enabled": true, "enabled": false}}', ["'enabled' twice"]),
        # Keys that do not exist
        (GOOD | {"gradient_cliping": 1.0}, ["'gradient_cliping'", "ds.json", "'gradient_clipping'"]),
        (GOOD | {"zero_optimisation": {}}, ["'zero_optimisation'", "'zero_optimization'"]),
        (GOOD | {"bf16": {"enable": True}}, ["'bf16.enable'", "'bf16.enabled'"]),
        (GOOD | {"zero_optimization": {"stge": 1}}, ["'zero_optimization.stge'", "optimization.stage'"]),
        (GOOD | {"data_types": {"grad_acum_dtype": "fp32"}}, ["'data_types.grad_accum_dtype'"]),
        (GOOD | {"optimizer": {"type": "AdamW", "parms": {}}}, ["'optimizer.parms'", "'optimizer.params'"]),
        (GOOD | {"optimizer.params.lr": 1}, ["unknown key 'optimizer.params.lr' in", "ds.json"]),
        (adamw(weight_deacy=0), ["'optimizer.params.weight_deacy'", "'optimizer.params.weight_decay'"]),
        # Sections that live elsewhere
        (GOOD | {"scheduler": {"type": "WarmupLR"}}, ["'scheduler'", "recipe", "'schedule' section"]),
        (GOOD | {"wandb": {"enabled": True}}, ["'wandb'", "recipe", "'tracking' section"]),
        (GOOD | {"tensorboard": {"enabled": True}}, ["'tensorboard'", "metrics.jsonl"]),
        # "auto"
        (GOOD | {"train_batch_size": "auto"}, ["'train_batch_size'", '"auto"', "Hugging Face"]),
        (GOOD | {"bf16": {"enabled": "auto"}}, ["'bf16.enabled'", '"auto"', "write the value"]),
        (GOOD | {"zero_optimization": {"stage": "auto"}}, ["'zero_optimization.stage'", '"auto"']),
        (adamw(lr="auto"), ["'optimizer.params.lr'", '"auto"']),
        # Wrong types and values
        (GOOD | {"train_batch_size": "8"}, ["'train_batch_size'", "'8'", "an integer"]),
        (GOOD | {"train_batch_size": 8.0}, ["'train_batch_size'", "8.0", "an integer"]),
        (GOOD | {"train_batch_size": True}, ["'train_batch_size'", "True", "an integer"]),
        (GOOD | {"gradient_clipping": "1"}, ["'gradient_clipping'", "'1'", "a number"]),
        (GOOD | {"wall_clock_breakdown": 1}, ["'wall_clock_breakdown'", "1", "true or false"]),
        (GOOD | {"steps_per_print": "never"}, ["'steps_per_print'", "'never'", "least 1 or null"]),
        (GOOD | {"communication_data_type": "fp8"}, ["'communication_data_type'", "'fp8'", "fp16, bf16"]),
        (GOOD | {"bf16": True}, ["'bf16'", "True", "section in braces"]),
        (GOOD | {"bf16": {"enabled": "yes"}}, ["'bf16", "'yes'"]),
        (GOOD | {"torch_autocast": {"enabled": 1}}, ["'torch_autocast.enabled'", "1", "true or false"]),
        (GOOD | {"torch_autocast": {"enabled": True, "dtype": "bf8"}}, ["'torch_autocast.dtype'", "bf16"]),
        (GOOD | {"data_types": {"grad_accum_dtype": 32}}, ["'data_types.grad_accum_dtype'", "32", "fp32"]),
        (GOOD | {"zero_optimization": {"stage": 7}}, ["'zero_optimization.stage'", "7", "one of 0, 1, 2"]),
        (GOOD | {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "moon"}}},
         ["'zero_optimization.offload_optimizer.device'", "'moon'", "cpu"]),
        (GOOD | {"zero_optimization": {"reduce_bucket_size": -1}}, ["reduce_bucket_size'", "-1", "above 0"]),
        (GOOD | {"bf16": {"enabled": True}, "fp16": {"enabled": True}}, ["'bf16'", "'fp16'", "both enabled"]),
        # What DeepSpeed would crash on later, or compute wrongly
        (GOOD | BF16 | {"torch_autocast": {"enabled": True}}, ["'torch_autocast'", "both"]),
        (GOOD | BF16, ["'data_types.grad_accum_dtype'", "fp32 with bf16 parameters", "stage to 1, 2 or 3"]),
        (GOOD | {"data_types": {"grad_accum_dtype": "bfloat16"}}, ["bf16 with fp32 parameters"]),
        (GOOD | {"data_types": {"param_dtype": "bf16"}}, ["'data_types.param_dtype'", "leave it out"]),
        (zero(3, offload_optimizer={"device": "nvme"}), ["offload_optimizer.device'", "nvme", "cpu or none"]),
        (zero(3, offload_param={"device": "nvme"}), ["offload_param.device'", "nvme", "cpu or none"]),
        (zero(3, offload_param={"device": "cpu"}), ["optimization.offload_param'", "offload_optimizer"]),
        (zero(0, offload_optimizer={"device": "cpu"}), ["offload_optimizer'", "stage 1, 2 or 3"]),
        (zero(1, elastic_checkpoint=True), ["'zero_optimization.elastic_checkpoint'", "load_universal"]),
        (zero(1, compute_grad_norm=False), ["'zero_optimization.compute_grad_norm'", "grad_norm"]),
        (zero(2) | {"prescale_gradients": True}, ["'prescale_gradients'", "ZeRO-2", "reduce_scatter false"]),
        (zero(3) | {"gradient_predivide_factor": 2.0}, ["'gradient_predivide_factor'", "2.0", "ZeRO-3"]),
        (GOOD | {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}},
         ["'bf16.bf16_master_weights_and_grads'", "fp32 weights"]),
        (adamw(fused=True), ["'optimizer.params.fused'", "torch_adam to true"]),
        (muon(1), ["'optimizer.type'", "Muon", "fp32 parameters, fp32 accumulation and ZeRO-1"]),
        (muon(2, **BF16), ["Muon", "bf16 parameters, fp32 accumulation and ZeRO-2"]),
        (muon(1, bf16={"enabled": True}), ["Muon", "bf16 accumulation", "grad_accum_dtype fp32 and ZeRO-1"]),
        (muon(1, **BF16, checkpoint={"load_universal": True}), ["'checkpoint.load_universal'", "Muon"]),
        (GOOD | {"optimizer": {"type": "Muon", "params": {"lr": 1, "ns_method": 1}}}, ["ns_method'", "gram"]),
        (GOOD | {"optimizer": {"type": "Muon", "params": {"lr": 0}}}, ["'optimizer.params.lr'", "above 0"]),
        (GOOD | {"optimizer": {"type": "Muon", "params": {"lr": 1, "amsgrad": True}}}, ["params.amsgrad'"]),
        # The optimizer
        ({"train_batch_size": 8}, ["ds.json", "no 'optimizer' section"]),
        (GOOD | {"optimizer": {"params": {"lr": 1}}}, ["'optimizer.type'", "None", "adamw"]),
        (GOOD | {"optimizer": {"type": "AdamQ"}}, ["optimizer.type'", "'AdamQ'", "lion"]),
        (GOOD | {"optimizer": {"type": "AdamW"}}, ["no 'optimizer.params.lr'", "a number above 0"]),
        (GOOD | {"optimizer": {"type": "AdamW", "params": [1]}}, ["'optimizer.params'", "[1]", "in braces"]),
        (adamw(lr=-1), ["'optimizer.params.lr'", "-1"]),
        (adamw(lr=math.nan), ["'optimizer.params.lr'", "nan", "a number"]),
        (adamw(weight_decay="0.1"), ["'optimizer.params.weight_decay'", "'0.1'", "a number"]),
        (adamw(eps=True), ["params.eps'", "True"]),
        (adamw(betas=0.9), ["params.betas'", "0.9"]),
        (adamw(betas=[0.9]), ["params.betas'", "[0.9]"]),
        (adamw(betas=[0.9, 1]), ["params.betas'", "below 1"]),
        (adamw(torch_adam="yes"), ["'optimizer.params.torch_adam'", "'yes'", "true or false"]),
    ],
)  # fmt: skip
def test_a_mistake_in_the_json_gets_one_sentence(tmp_path: Path, config: Any, parts: list[str]) -> None:
    message = refusal(tmp_path, config)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"optimiser.params.lr": "1"}, ["'ds.optimiser.params.lr'", "command line", "optimizer.params.lr'"]),
        ({"optimizer.params.lrr": "1"}, ["'ds.optimizer.params.lrr'", "'ds.optimizer.params.lr'"]),
        ({"zero_optimization.stage.x": "1"}, ["optimization.stage.x'", "'ds.zero_optimization.stage'"]),
        ({"bf16": "true"}, ["'bf16'", "True", "section in braces"]),
        ({"bf16.enabled": "yes"}, ["'bf16", "'yes'"]),
        ({"optimizer.params.lr": "fast"}, ["'optimizer.params.lr'", "'fast'", "a number"]),
        ({"train_batch_size": "auto"}, ["'train_batch_size'", '"auto"']),
        ({"scheduler.type": "WarmupLR"}, ["'scheduler'", "'schedule' section"]),
        ({"wandb.enabled": "true"}, ["'wandb'", "'tracking' section"]),
        ({"train_batch_size": "7"}, ["train_batch_size 7", "train_micro_batch_size_per_gpu 2", "1 rank(s)"]),
    ],
)  # fmt: skip
def test_a_mistake_in_an_override_gets_one_sentence(
    tmp_path: Path, overrides: dict[str, str], parts: list[str]
) -> None:
    message = refusal(tmp_path, GOOD, overrides)
    assert [part for part in parts if part not in message] == [], message


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD | {"bf16": 1}, {"bf16.enabled": "true"})
    assert "--ds.bf16.enabled" in message and "'bf16'" in message and "not a section" in message
