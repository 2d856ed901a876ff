"""The DeepSpeed JSON: what is accepted, how batch sizes follow, and what is derived from it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.ds_configs import ADAMW, BF16, GOOD, adamw, load, muon, refusal, zero
from training.config import deepspeed as module
from training.config import read_deepspeed_config
from training.config.batch_sizes import IndivisibleBatch
from training.engine.ranks import deepspeed

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "ds_configs").glob("*.json"))
MOST_RANKS = {"protocol": 2, "proxy_prose": 4}
"""Of batches that are small or published: of 576 sequences in micro-batches of 96, and of 32 in ones of 8."""


def test_there_are_files_to_test() -> None:
    assert {"zero1_bf16", "zero1_autocast", "zero1_bf16_cpu"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_our_files_load_on_one_to_eight_ranks(path: Path, world_size: int) -> None:
    if world_size > MOST_RANKS.get(path.stem, 8):
        with pytest.raises(IndivisibleBatch, match=f"on {world_size} rank"):
            read_deepspeed_config(path, {}, world_size)
        return
    written, config = json.loads(path.read_text()), read_deepspeed_config(path, {}, world_size)
    assert config.train_batch_size == config.micro_batch * config.accumulation * world_size
    assert {key: config.raw[key] for key in written} == written  # what is written is kept


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_deepspeed_reads_our_files_as_we_do(path: Path) -> None:
    config = read_deepspeed_config(path, {}, 1)
    theirs = deepspeed.runtime.config.DeepSpeedConfig(copy.deepcopy(config.raw))
    assert theirs.train_batch_size == config.train_batch_size
    assert theirs.train_micro_batch_size_per_gpu == config.micro_batch
    assert theirs.gradient_accumulation_steps == config.accumulation
    assert theirs.zero_optimization_stage == config.stage
    assert theirs.bfloat16_config.enabled == (config.precision == "bf16")
    assert not theirs.float16_config.enabled
    assert theirs.gradient_clipping == 1.0
    assert theirs.optimizer_name == config.optimizer == ("muon" if "muon" in path.stem else "adamw")
    assert theirs.optimizer_params["lr"] == config.peak_lr > 0
    assert theirs.scheduler_name is None


@pytest.mark.parametrize(
    ("given", "world_size", "resolved"),
    [
        ({"train_batch_size": 24, "train_micro_batch_size_per_gpu": 3}, 2, (24, 3, 4)),
        ({"train_batch_size": 24, "gradient_accumulation_steps": 4}, 2, (24, 3, 4)),
        ({"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 4}, 2, (24, 3, 4)),
        ({"train_batch_size": 24}, 2, (24, 12, 1)),
        ({"train_micro_batch_size_per_gpu": 3}, 2, (6, 3, 1)),
        (dict(zip(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
                  (24, 3, 4), strict=True)), 2, (24, 3, 4)),
        ({"train_batch_size": 24, "train_micro_batch_size_per_gpu": 3}, 1, (24, 3, 8)),
        ({"train_batch_size": 24, "train_micro_batch_size_per_gpu": 3}, 8, (24, 3, 1)),
    ],
)  # fmt: skip
def test_batch_sizes_follow_from_those_that_are_given(
    tmp_path: Path, given: dict[str, int], world_size: int, resolved: tuple[int, int, int]
) -> None:
    config = load(tmp_path, {"optimizer": ADAMW} | given, world_size=world_size)
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert tuple(config.raw[name] for name in names) == resolved
    assert (config.train_batch_size, config.micro_batch, config.accumulation) == resolved


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("given", [(24, 3, None), (24, None, 4), (24, None, None), (None, 3, 2), (24, 3, 4)])
def test_batch_sizes_are_deepspeeds_or_refused(
    tmp_path: Path, given: tuple[int | None, ...], world_size: int
) -> None:
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    sizes = {name: size for name, size in zip(names, given, strict=True) if size is not None}
    theirs: Any = object.__new__(deepspeed.runtime.config.DeepSpeedConfig)
    for name in names:
        setattr(theirs, name, sizes.get(name))
    theirs.world_size = world_size
    try:
        theirs._configure_train_batch_size()
    except (AssertionError, ZeroDivisionError):
        message = refusal(tmp_path, {"optimizer": ADAMW} | sizes, world_size=world_size)
        assert f"on {world_size} rank(s)" in message and "do not divide" in message
        assert all(f"{name} {size}" in message for name, size in sizes.items())
    else:
        config = load(tmp_path, {"optimizer": ADAMW} | sizes, world_size=world_size)
        assert [config.raw[name] for name in names] == [getattr(theirs, name) for name in names]


def test_a_batch_size_below_one_or_none_at_all_is_refused(tmp_path: Path) -> None:
    assert "'train_batch_size'" in refusal(tmp_path, {"optimizer": ADAMW, "train_batch_size": 0})
    assert "at least 1" in refusal(tmp_path, GOOD | {"gradient_accumulation_steps": -1})
    message = refusal(tmp_path, {"optimizer": ADAMW})
    assert "neither 'train_batch_size' nor 'train_micro_batch_size_per_gpu'" in message


@pytest.mark.parametrize(
    ("key", "text", "changed"),
    [
        ("optimizer.params.lr", "3e-4", {"optimizer": {"type": "AdamW", "params": {"lr": 3e-4}}}),
        ("optimizer.params.betas", "[0.8, 0.9]", {"optimizer": adamw(betas=[0.8, 0.9])["optimizer"]}),
        ("optimizer.type", "Lion", {"optimizer": {"type": "Lion", "params": {"lr": 1e-3}}}),
        ("train_batch_size", "6", {"train_batch_size": 6, "gradient_accumulation_steps": 3}),
        ("bf16.enabled", "true", {"bf16": {"enabled": True}}),
        ("data_types.grad_accum_dtype", "fp32", {"data_types": {"grad_accum_dtype": "fp32"}}),
        ("steps_per_print", "null", {"steps_per_print": None}),
        ("zero_optimization", '{"stage": 2}', {"zero_optimization": {"stage": 2}}),
    ],
)
def test_an_override_replaces_or_adds_one_value(
    tmp_path: Path, key: str, text: str, changed: dict[str, Any]
) -> None:
    assert load(tmp_path, GOOD, {key: text}).raw == {**load(tmp_path, GOOD).raw, **changed}


def test_an_override_reaches_a_section_within_a_section(tmp_path: Path) -> None:
    key = "zero_optimization.offload_optimizer.device"
    assert load(tmp_path, zero(1), {key: "cpu"}).offloads_optimizer
    assert f"'{key}' in " in refusal(tmp_path, zero(1), {key: "moon"})


def test_an_override_leaves_the_file_alone(tmp_path: Path) -> None:
    load(tmp_path, GOOD, {"optimizer.params.lr": "0.5"})
    assert json.loads((tmp_path / "ds.json").read_text()) == GOOD


@pytest.mark.parametrize("installed", ["0.16.5", "0.19.7"])
def test_a_deepspeed_that_loses_gradients_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str
) -> None:
    monkeypatch.setattr(module, "version", lambda name: installed)
    message = refusal(tmp_path, GOOD)
    assert f"DeepSpeed {installed} is installed" in message and "0.19.8" in message


@pytest.mark.parametrize("installed", ["0.19.8", "0.19.10", "0.20.0", "1.0"])
def test_a_newer_deepspeed_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str) -> None:
    monkeypatch.setattr(module, "version", lambda name: installed)
    assert load(tmp_path, GOOD).train_batch_size == 2


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({}, "fp32"),
        ({"bf16": {"enabled": False}}, "fp32"),
        ({"bf16": {"enabled": True}}, "bf16"),
        ({"bf16": {}, "fp16": {"enabled": True}}, "fp16"),
        ({"torch_autocast": {"enabled": False, "dtype": "bfloat16"}}, "fp32"),
        ({"torch_autocast": {"enabled": True}}, "autocast_bf16"),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "autocast_bf16"),
        ({"torch_autocast": {"enabled": True, "dtype": "bf16"}}, "autocast_bf16"),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, "autocast_fp16"),
        ({"torch_autocast": {"enabled": True, "dtype": "fp16"}}, "autocast_fp16"),
    ],
)
def test_precision_names_the_mode(tmp_path: Path, config: dict[str, Any], mode: str) -> None:
    assert load(tmp_path, GOOD | config).precision == mode


def test_keys_of_zero_3_are_known_by_the_names_that_people_use(tmp_path: Path) -> None:
    names = (
        "prefetch_bucket_size",
        "param_persistence_threshold",
        "max_live_parameters",
        "max_reuse_distance",
    )
    config = zero(3, **{f"stage3_{name}": 10**6 for name in names})
    assert load(tmp_path, config).raw["zero_optimization"] == config["zero_optimization"]
    load(tmp_path, zero(3, **dict.fromkeys(names, 10**6)))
    assert "'zero_optimization.stage3_prefetch_bucket_size'" in refusal(
        tmp_path, zero(3, stage3_prefetch_bucket=1)
    )


@pytest.mark.parametrize("config", [muon(0), muon(1, **BF16), zero(3, offload_param={"device": "none"})])
def test_what_works_is_taken(tmp_path: Path, config: dict[str, Any]) -> None:
    assert load(tmp_path, config).raw["optimizer"] == config["optimizer"]


@pytest.mark.parametrize(
    ("config", "optimizer"),
    [
        (zero(0), "torch"),
        (zero(0, **{}) | {"bf16": {"enabled": True}}, "unfused"),
        (zero(1), "zero12"),
        (zero(1) | {"bf16": {"enabled": True}}, "zero12"),
        (zero(1) | BF16, "bf16"),
        (zero(1, offload_optimizer={"device": "cpu"}) | BF16, "zero12"),
        (zero(1) | {"fp16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}, "zero12"),
        (zero(2) | BF16, "zero12"),
        (zero(3) | BF16, "zero3"),
    ],
)
def test_deepspeeds_optimizer_is_known_beforehand(
    tmp_path: Path, config: dict[str, Any], optimizer: str
) -> None:
    assert load(tmp_path, config).engine_optimizer == optimizer
