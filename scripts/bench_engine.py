"""Measure a training step side by side with what people run instead, in turn in one process group.

    python scripts/bench_engine.py [--ranks 2] [--rounds 3] [--steps 2] [--n_layer 6] [--n_embd 384] ...

Ranks are GPUs where there are some, else CPU processes that share the cores. In each round every contender
is built from the same seed, makes one step that is not counted, then `steps` on the same tokens, and is
torn down. The tables give medians over rounds. Peak memory is what a rank held beyond what it held before
the contender was built: the allocator's on a GPU, the resident set's on a CPU.
"""

import sys

# the project's root instead of scripts/, whose tokenize.py would hide the standard library's
sys.path[0] = __file__.rpartition("/scripts/")[0]

import argparse
import ctypes
import gc
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model import GPT, GPTConfig, flops_per_token
from training.config import read_deepspeed_config
from training.engine.build import build_engine, parameter_groups
from training.engine.compilation import compile_blocks
from training.engine.cpu_bf16 import bf16_arithmetic
from training.engine.hardware import peak_flops
from training.engine.ranks import join_ranks

ROOT = Path(__file__).resolve().parents[1]
RATE = 1e-3
Batch = tuple[torch.Tensor, torch.Tensor]


class PlainLoss(nn.Module):
    """A GPT whose loss comes from all logits in fp32, as nanoGPT's does."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, idx: torch.Tensor, targets: torch.Tensor) -> tuple[None, torch.Tensor]:
        """(B, T), (B, T) -> the mean loss."""
        logits, _ = self.gpt(idx)
        assert logits is not None
        return None, F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-1)


class Bench:
    """What all contenders share on this rank."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = join_ranks().device
        self.ranks = dist.get_world_size()
        shape = {name: getattr(options, name) for name in ("n_layer", "n_head", "n_embd", "block_size")}
        self.config = GPTConfig(**shape)
        with torch.device("meta"):
            self.flops_per_token = flops_per_token(GPT(self.config))
        self.sequences = options.micro_batch * options.accumulation * self.ranks
        overrides = {
            "train_batch_size": str(self.sequences),
            "train_micro_batch_size_per_gpu": str(options.micro_batch),
            "optimizer.params.lr": str(RATE),
        }
        self.deepspeed = read_deepspeed_config(ROOT / "ds_configs" / "zero1_bf16.json", overrides, self.ranks)

    def gpt(self) -> GPT:
        """The model, with the same weights each time."""
        torch.manual_seed(1)
        return GPT(self.config).to(self.device)

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step."""
        generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
        size = (self.options.accumulation, self.options.micro_batch, self.config.block_size + 1)
        tokens = torch.randint(0, 50257, size, generator=generator).to(self.device)
        return [(micro_batch[:, :-1], micro_batch[:, 1:]) for micro_batch in tokens]


Turn = tuple[list[float], float]
"""Seconds of each counted step, and the loss after the last."""


def timed(bench: Bench, step: Callable[[int], torch.Tensor]) -> Turn:
    """Make `options.steps` steps, and one before them that is not counted."""
    seconds = []
    for number in range(bench.options.steps + 1):
        dist.barrier()
        started = time.perf_counter()
        loss = step(number).item()
        dist.barrier()
        seconds.append(time.perf_counter() - started)
    return seconds[1:], loss


def normlab(bench: Bench, compiled: bool = True, plain_loss: bool = False) -> Turn:
    """NormLab's engine: ZeRO-1, bf16."""
    gpt = bench.gpt()
    if compiled:
        compile_blocks(gpt, print)
    engine = build_engine(PlainLoss(gpt) if plain_loss else gpt, bench.deepspeed)

    def step(number: int) -> torch.Tensor:
        with bf16_arithmetic():
            for idx, targets in bench.batches(number):
                _, loss = engine(idx, targets)
                engine.backward(loss)
                engine.step()
        return loss

    turn = timed(bench, step)
    engine.destroy()
    return turn


def ddp(bench: Bench, autocast: bool, compiled: bool) -> Turn:
    """nanoGPT's loop: DDP, AdamW on fp32 weights, clipping, the logits whole."""
    module: Any = PlainLoss(bench.gpt())
    model = DistributedDataParallel(torch.compile(module) if compiled else module)
    groups = parameter_groups(module, weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)

    def step(number: int) -> torch.Tensor:
        batches = bench.batches(number)
        for i, (idx, targets) in enumerate(batches, start=1):
            with bf16_arithmetic(), nullcontext() if i == len(batches) else model.no_sync():
                with torch.autocast(bench.device.type, torch.bfloat16, enabled=autocast):
                    _, loss = model(idx, targets)
                (loss / len(batches)).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return timed(bench, step)


def huggingface(bench: Bench) -> Turn:
    """Hugging Face's Trainer and GPT-2 with the same DeepSpeed JSON, from the end of a step to the next's."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize(bench.device)
            ends.append(time.perf_counter())

    steps, rank = bench.options.steps + 1, dist.get_rank()
    rows: list[torch.Tensor] = [torch.empty(0)] * (steps * bench.sequences)
    for step in range(steps):  # Trainer deals its micro-batches to the ranks in turn
        for number, (idx, targets) in enumerate(bench.batches(step)):
            tokens = torch.cat([idx, targets[:, -1:]], dim=1).cpu()
            place = ((step * bench.options.accumulation + number) * bench.ranks + rank) * len(tokens)
            rows[place : place + len(tokens)] = list(tokens)
    blank = torch.zeros(bench.config.block_size, dtype=torch.long)
    data = [
        {"input_ids": row[:-1], "labels": row[:-1]} if len(row) else {"input_ids": blank, "labels": blank}
        for row in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            deepspeed=dict(bench.deepspeed.raw),
            per_device_train_batch_size=bench.options.micro_batch,
            gradient_accumulation_steps=bench.options.accumulation,
            max_steps=steps,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            weight_decay=0.1,
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=bench.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        shape = bench.config
        torch.manual_seed(1)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=shape.vocab_size,
                n_positions=shape.block_size,
                n_embd=shape.n_embd,
                n_layer=shape.n_layer,
                n_head=shape.n_head,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                resid_pdrop=0.0,
                use_cache=False,
            )
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Clock()])
        with bf16_arithmetic():
            loss = trainer.train().training_loss
        trainer.accelerator.free_memory()
        engine: Any = trainer.model_wrapped
        engine.destroy()
    return [end - begin for begin, end in pairwise(ends)], loss


CONTENDERS: dict[str, Callable[[Bench], Turn]] = {
    "NormLab": normlab,
    "NormLab, uncompiled, plain loss": partial(normlab, compiled=False, plain_loss=True),
    "DDP fp32": partial(ddp, autocast=False, compiled=False),
    "DDP fp32, model compiled": partial(ddp, autocast=False, compiled=True),
    "DDP bf16 autocast": partial(ddp, autocast=True, compiled=False),
    "DDP bf16 autocast, model compiled": partial(ddp, autocast=True, compiled=True),
    "HF Trainer, same JSON": huggingface,
}
OURS = list(CONTENDERS)[:2]


def measure(bench: Bench, name: str) -> dict[str, Any]:
    """One turn of a contender: seconds of each counted step, peak bytes, and the loss after the last."""
    with peak_memory(bench.device) as peak:
        seconds, loss = CONTENDERS[name](bench)
    return {"seconds": seconds, "peak": peak["over"], "loss": loss}


def synchronize(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, int]]:
    """Bytes at most, over what was there before, once the block has ended."""
    over: dict[str, int] = {}
    release(device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield over
        over["over"] = torch.cuda.max_memory_allocated() - before
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = status("VmRSS")
        yield over
        over["over"] = status("VmHWM") - before
    release(device)


def status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def release(device: torch.device) -> None:
    """Give freed memory back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        ctypes.CDLL(None).malloc_trim(0)


def gemm_peak(device: torch.device) -> float:
    """FLOP/s of all ranks together at square bf16 products, by torch's own kernel or in fp32, the faster."""
    best, n = 0.0, 8192 if device.type == "cuda" else 1536
    for native in (True, False):
        a, b = (torch.randn(n if i else min(n, 512), n, device=device).bfloat16() for i in range(2))
        if not native:
            a, b = a.float(), b.float()
        if device.type == "cuda" and not native:
            continue
        for _ in range(4):
            dist.barrier()
            started = time.perf_counter()
            a @ b
            synchronize(device)
            dist.barrier()
            best = max(best, 2 * a.shape[0] * n * n / (time.perf_counter() - started))
            if time.perf_counter() - started > 1:
                break
    return best * dist.get_world_size()


def run(rank: int, options: argparse.Namespace, port: int) -> None:
    """All rounds on one rank; rank 0 prints."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(options.ranks),
        "LOCAL_WORLD_SIZE": str(options.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    bench = Bench(options)
    names = [name for name in CONTENDERS if not options.only or name in (*OURS, *options.only)]
    peak = [gemm_peak(bench.device)]
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            turn = measure(bench, name)
            worst = torch.tensor(float(turn["peak"]), device=bench.device)
            dist.all_reduce(worst, op=dist.ReduceOp.MAX)
            turns[name].append(turn | {"peak": worst.item()})
            rate = bench.sequences * bench.config.block_size / statistics.median(turn["seconds"])
            print(
                f"round {number + 1}, {name}: {rate:,.0f} tokens/s, {worst.item() / 2**20:,.0f} MiB, "
                f"loss {turn['loss']:.4f}",
                flush=True,
            )
        peak.append(gemm_peak(bench.device))
    if rank == 0:
        report(bench, turns, max(peak))
    dist.barrier()
    dist.destroy_process_group()


def report(bench: Bench, turns: dict[str, list[dict[str, Any]]], peak: float) -> None:
    """The table, the ratios and the goals."""
    tokens = bench.sequences * bench.config.block_size
    rates = {
        n: statistics.median(tokens / s for turn in of for s in turn["seconds"]) for n, of in turns.items()
    }
    memory = {n: statistics.median(turn["peak"] for turn in of) for n, of in turns.items()}
    ours = OURS[0]
    print(
        f"\n{'contender':<36} {'tokens/s':>10} {'of ours':>8} {'peak MiB':>9} {'of ours':>8} {'of GEMM':>8}"
    )
    for name in turns:
        share = rates[name] * bench.flops_per_token / peak
        print(
            f"{name:<36} {rates[name]:>10,.0f} {rates[name] / rates[ours]:>8.2f} "
            f"{memory[name] / 2**20:>9,.0f} {memory[name] / memory[ours]:>8.2f} {share:>8.2f}"
        )
    print(f"bf16 GEMM peak of {bench.ranks} rank(s): {peak / 1e9:,.0f} GFLOP/s")
    if bench.device.type == "cuda" and (known := peak_flops(torch.cuda.get_device_name())):
        for name, rate in rates.items():
            print(f"MFU of {name}: {rate * bench.flops_per_token / (known * bench.ranks):.1%}")
    others = [name for name in turns if name not in OURS]
    facts: dict[str, Any] = {"tokens_per_s": rates, "peak_bytes": memory, "gemm_peak_flops": peak}
    if others:
        fastest, leanest = max(others, key=rates.__getitem__), min(others, key=memory.__getitem__)
        facts["speed_ratio"] = rates[ours] / rates[fastest]
        facts["memory_ratio"] = memory[ours] / memory[leanest]
        facts["gemm_share"] = rates[ours] * bench.flops_per_token / peak
        print(f"tokens/s over the best of the others ({fastest}): {facts['speed_ratio']:.2f} (goal 1.3)")
        print(f"peak memory over the least of the others ({leanest}): {facts['memory_ratio']:.2f} (goal 0.6)")
        print(f"share of the GEMM peak in the model's own FLOPs: {facts['gemm_share']:.2f} (goal 0.6)")
    if bench.options.json:
        Path(bench.options.json).write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    gpus = torch.cuda.device_count()
    numbers = {"ranks": gpus or 2, "rounds": 3, "steps": 2, "n_layer": 6, "n_head": 6, "n_embd": 384,
               "block_size": 256, "micro_batch": 8, "accumulation": 2}  # fmt: skip
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--only", nargs="*", choices=list(CONTENDERS), help="these beside NormLab's two")
    parser.add_argument("--json", help="a file for the numbers")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    torch.multiprocessing.spawn(run, (options, port), nprocs=options.ranks)


if __name__ == "__main__":
    main()
