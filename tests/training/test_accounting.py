"""FLOPs against torch's counter, memory against what processes held, and sums that can be done by hand."""

import ctypes
import gc
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model import GPT, PRESETS, VARIANTS, GPTConfig, flops_per_token
from model.loss import _MeanLoss
from tests.cpu_kinds import pretend_bf16
from tests.distributed import run_on_fresh_ranks, run_on_ranks
from training.config import DeepSpeedConfig, read_deepspeed_config
from training.engine.build import build_engine
from training.engine.cpu_bf16 import bf16_arithmetic
from training.engine.hardware import GPUS, peak_flops
from training.plan.accounting import communication, step_time
from training.plan.memory import MemoryModel
from training.plan.trace import HeadWithoutNumbers, Live

pytestmark = pytest.mark.xdist_group("memory")  # not beside the test of GPT-2 Medium, which needs 19 GB
TINY = GPTConfig(n_layer=3, n_head=4, n_embd=64, block_size=48, vocab_size=512)
ADAMW = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
FP32: dict[str, Any] = {"optimizer": ADAMW, "gradient_clipping": 1.0}
ZERO1 = FP32 | {"zero_optimization": {"stage": 1}}
BF16 = ZERO1 | {
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
}
AUTOCAST = ZERO1 | {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
SIZES = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}


def counted(config: GPTConfig) -> float:
    """FLOPs per token of forward and backward, as torch counts them, with attention as two plain products."""
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        gpt = GPT(config).train()
        idx = torch.zeros(1, config.block_size, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            gpt.lm_head(gpt.hidden(idx)).sum().backward()
    return counter.get_total_flops() / config.block_size


MODERN = {"mlp": "swiglu", "positions": "rotary", "tied": False, "logit_softcap": 5.0, "z_loss": 1e-3}


@pytest.mark.parametrize("shape", [{}, {"bias": False}, {"n_layer": 1, "block_size": 7}, MODERN])
def test_gpt2s_flops_are_those_that_torch_counts(shape: dict[str, Any]) -> None:
    config = replace(TINY, **shape)
    assert flops_per_token(GPT(config)) == counted(config)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variants_flops_are_nearly_those_that_torch_counts(name: str) -> None:
    """What deviates, the convention leaves out: products of streams with each other, and of vectors. And a
    convolution's weights multiply, but not in a matrix product, which alone torch counts."""
    config = replace(TINY, **VARIANTS[name].design)
    many_streams = name in (
        "hyper_connections",
        "hyper_connections_dynamic",
        "mhc",
        "mhc_lite",
        "attention_residuals",
    )
    rel = 0.25 if many_streams else 0.05 if name == "canon" else 0.02
    assert flops_per_token(GPT(config)) == pytest.approx(counted(config), rel=rel)


def test_gpt2_mediums_flops() -> None:
    with torch.device("meta"):
        gpt = GPT(GPTConfig(**PRESETS["gpt2_medium"]))
    matrices = 12 * 24 * 1024**2 + 50304 * 1024
    assert flops_per_token(gpt) == 6 * matrices + 12 * 24 * 1024 * 1024


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12), ("NVIDIA GeForce RTX 4090", 165e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None), ("AMD Instinct MI300X", None),
    ],
)  # fmt: skip
def test_a_gpus_peak_is_found_by_torchs_name_for_it(name: str, flops: float | None) -> None:
    assert peak_flops(name) == flops


def load(folder: Path, config: dict[str, Any], ranks: int) -> DeepSpeedConfig:
    (folder / "ds.json").write_text(json.dumps(SIZES | config))
    return read_deepspeed_config(folder / "ds.json", {}, ranks)


def test_memory_of_the_states_by_hand(tmp_path: Path) -> None:
    """BF16_Optimizer holds 2 + 2 + 4 bytes per parameter, and 12 shared by ranks; autocast 4 + 4 and 12."""
    untied = replace(TINY, tied=False)
    P = GPT(untied).num_parameters()
    assert GPT(TINY).num_parameters() + 512 * 64 == P
    assert MemoryModel(untied, load(tmp_path, BF16, 4)).of(4, 2, 2).states == 3 * P
    P = GPT(TINY).num_parameters()
    bf16 = MemoryModel(TINY, load(tmp_path, BF16, 4)).of(4, 2, 2)
    assert (bf16.weights, bf16.gradients, bf16.states) == (2 * P, 6 * P, 3 * P)
    autocast = MemoryModel(TINY, load(tmp_path, AUTOCAST, 4)).of(4, 2, 2)
    assert (autocast.weights, autocast.gradients, autocast.states) == (4 * P, 4 * P, 3 * P)
    fp32 = MemoryModel(TINY, load(tmp_path, FP32, 1)).of(1, 2, 2)
    assert (fp32.weights, fp32.gradients, fp32.states) == (4 * P, 4 * P, 8 * P)
    offload = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    offloaded = MemoryModel(TINY, load(tmp_path, BF16 | offload, 4)).of(4, 2, 2)
    assert offloaded.states == 0 and offloaded.host == 3 * P


def test_more_ranks_hold_no_more_and_larger_micro_batches_no_less(tmp_path: Path) -> None:
    for config in (FP32, BF16, AUTOCAST, BF16 | {"zero_optimization": {"stage": 2}}):
        model = MemoryModel(TINY, load(tmp_path, config, 1))
        states = [model.of(ranks, 2, 2).states for ranks in (1, 2, 8, 4096)]
        assert states == sorted(states, reverse=True)
        peaks = [model.of(2, size, 2).peak for size in (1, 2, 5, 16)]
        assert peaks == sorted(peaks) and peaks[0] < peaks[-1]


def test_checkpointed_activations_are_smaller(tmp_path: Path) -> None:
    shape = replace(TINY, n_layer=8)
    plain = MemoryModel(shape, load(tmp_path, BF16, 2)).of(2, 16, 1)
    recomputed = MemoryModel(shape, load(tmp_path, BF16 | {"activation_checkpointing": {}}, 2)).of(2, 16, 1)
    assert recomputed.activations < 0.6 * plain.activations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(256, 16, 512), (256, 128, 512), (64, 16, 512)])
def test_the_heads_stand_in_holds_what_the_loss_holds(
    shape: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`_MeanLoss` on this CPU, with what is compiled in it left out, beside the stand-in."""
    rows, width, vocab = shape
    sums = torch.zeros(rows, 1), torch.zeros(())
    monkeypatch.setattr("model.loss._statistics", lambda *_: sums)
    monkeypatch.setattr("model.loss._to_gradient", lambda *_: None)
    monkeypatch.setattr("model.loss._compiled", lambda function: function)
    targets = torch.zeros(rows, dtype=torch.int64)
    rounds = dtype != torch.float32
    found = []
    for head in (
        lambda h, w: _MeanLoss.apply(h, w, targets, 64),
        lambda h, w: HeadWithoutNumbers.apply(h, w, 64, rounds),
    ):
        hidden, weight = (torch.randn(n, width, dtype=dtype, requires_grad=True) for n in (rows, vocab))
        with Live() as live:
            loss = head(hidden, weight)
            forward, live.peak = live.peak, live.now
            (loss / 2).backward()
        found.append((forward, live.peak))
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_communication_by_hand(tmp_path: Path) -> None:
    P = GPT(TINY).num_parameters()
    for stage, gradients, weights in ((0, 2 * 4, 0), (1, 2 * 4, 4), (2, 2 * 4 * 3, 4), (3, 4 * 3, 2 * 3 * 4)):
        config = FP32 | {"zero_optimization": {"stage": stage}}
        model = MemoryModel(TINY, load(tmp_path, config, 4))
        assert communication(model, ranks=4, accumulation=3) == {
            "gradients": round(0.75 * gradients * P), "weights": round(0.75 * weights * P)
        }  # fmt: skip
        assert sum(communication(model, ranks=1, accumulation=3).values()) == 0
    reduced_in_fp32 = communication(MemoryModel(TINY, load(tmp_path, BF16, 4)), 4, 3)
    assert reduced_in_fp32 == {"gradients": round(0.75 * 8 * P), "weights": round(0.75 * 2 * P)}


def test_a_steps_time_by_hand(tmp_path: Path) -> None:
    model, gpu = MemoryModel(TINY, load(tmp_path, BF16, 8)), GPUS["H100"]
    time = step_time(model, flops=10**9, tokens=2**20, gpu=gpu, ranks=8, accumulation=2, mfu=0.5)
    assert time.compute == pytest.approx(1e9 * 2**20 / (8 * 989e12 * 0.5))
    assert time.communicate == pytest.approx(sum(communication(model, 8, 2).values()) / (0.7 * 450e9))
    across = step_time(model, flops=10**9, tokens=2**20, gpu=gpu, ranks=16, accumulation=2, mfu=0.5)
    assert across.compute == pytest.approx(time.compute / 2)
    all_ports = 8 * 50e9  # of a node, which are slower together than NVLink
    assert across.communicate == pytest.approx(sum(communication(model, 16, 2).values()) / (0.7 * all_ports))
    again = MemoryModel(TINY, load(tmp_path, BF16 | {"activation_checkpointing": {}}, 8))
    assert step_time(again, 10**9, 2**20, gpu, 8, 2, 0.5).compute == pytest.approx(time.compute * 4 / 3)


# ---- memory, measured ----
MEASURED = GPTConfig(n_layer=4, n_head=8, n_embd=512, block_size=128, vocab_size=50304)
CASES: dict[str, tuple[int, dict[str, Any], tuple[bool | None, ...]]] = {
    "fp32, 1 rank": (1, FP32 | {"zero_optimization": {"stage": 0}}, (None,)),
    "bf16, fp32 accumulation, ZeRO-1, 2 ranks": (2, BF16, (False, True)),
    "autocast, ZeRO-1, 2 ranks": (2, AUTOCAST, (False, True)),
    "bf16, ZeRO-2, micro-batch 8, 2 ranks": (
        2, BF16 | {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 8}, (True,)
    ),
}  # fmt: skip
"""Ranks, DeepSpeed's JSON, and on CPUs with bf16 instructions or without: fp32 is alike on both."""


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def two_steps(config: GPTConfig, ds_config: DeepSpeedConfig, idx: torch.Tensor) -> None:
    engine = build_engine(GPT(config), ds_config)
    for _ in range(2 * ds_config.accumulation):
        _, loss = engine(idx, idx)
        engine.backward(loss)
        engine.step()
    engine.destroy()


def model_on(has_bf16: bool | None) -> GPTConfig:
    """What is measured, on a CPU with bf16 instructions, or one without: this process's CPU becomes that one.

    To be called before anything is multiplied. None leaves the CPU what it is.
    """
    if has_bf16 is False:
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    if has_bf16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pretend_bf16(True, pytest.MonkeyPatch())
        return replace(MEASURED, n_embd=128)  # without the instructions torch's bf16 kernels are slow
    assert has_bf16 in (None, torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return MEASURED


def train_and_measure(
    rank: int, folder: Path, config: dict[str, Any], ranks: int, has_bf16: bool | None
) -> None:
    """Two steps; the peak of resident memory over what there was before the model, and what was predicted."""
    model = model_on(has_bf16)
    ds_config = load(folder / str(rank), config, ranks)
    # glibc's own ways again, so that what is freed goes back to the kernel: join_ranks has it kept
    libc = ctypes.CDLL(None)
    for option, value in ((-4, 65536), (-3, 2**17), (-1, 2**17)):  # M_MMAP_MAX, M_MMAP_THRESHOLD, M_TRIM_
        libc.mallopt(option, value)
    sizes = (ds_config.micro_batch, model.block_size)
    with bf16_arithmetic():
        # what is imported and allocated once, whatever the model's size
        small = replace(model, n_layer=1, n_embd=64, vocab_size=64)
        two_steps(small, ds_config, torch.zeros(sizes, dtype=torch.long))
        gc.collect()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        before = status("VmRSS")
        two_steps(model, ds_config, torch.randint(0, 50257, sizes))
    peak = torch.tensor(float(status("VmHWM") - before))
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    if rank == 0:
        predicted = MemoryModel(model, ds_config, "cpu").of(ranks, ds_config.micro_batch, 2).peak
        (folder / "peak.json").write_text(json.dumps([predicted, peak.item()]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "has_bf16"),
    [(name, kind) for name, (_, _, kinds) in CASES.items() for kind in kinds],
)
def test_peak_memory_is_predicted_within_15_percent(name: str, has_bf16: bool | None, tmp_path: Path) -> None:
    """On a CPU with bf16 instructions and on one without, whichever this is."""
    ranks, config, _ = CASES[name]
    for rank in range(ranks):
        (tmp_path / str(rank)).mkdir()
    # The forked ranks' server has computed, after which oneDNN takes the CPU as it is.
    run = run_on_ranks if has_bf16 is None else run_on_fresh_ranks
    run(train_and_measure, ranks, tmp_path, config, ranks, has_bf16)
    predicted, measured = json.loads((tmp_path / "peak.json").read_text())
    print(f"\n{name}, {has_bf16}: predicted {predicted / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert predicted == pytest.approx(measured, rel=0.15)
