"""A rank's part of `bench_engine.py`: the contenders in turn, timed and weighed, and the table of them."""

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bench_contenders import CONTENDERS, OURS, Bench, synchronize

from training.engine.hardware import peak_flops


def measure(bench: Bench, name: str) -> dict[str, Any]:
    """One turn of a contender: seconds of each counted step, peak bytes, and the loss after the last."""
    with peak_memory(bench.device) as peak:
        seconds, loss = CONTENDERS[name](bench)
    return {"seconds": seconds, "peak": peak["over"], "loss": loss}


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
    """FLOP/s of all ranks together at bf16 products, by torch's own kernel or in fp32, the faster."""
    # A GPU takes so many, so large, that starting and waiting for them does not count.
    best, n, rows, products = (0.0, 8192, 8192, 20) if device.type == "cuda" else (0.0, 1536, 512, 1)
    for native in (True, False):
        a, b = (torch.randn(size, n, device=device).bfloat16() for size in (rows, n))
        if not native:
            a, b = a.float(), b.float()
        if device.type == "cuda" and not native:
            continue
        for _ in range(4):
            dist.barrier()
            started = time.perf_counter()
            for _ in range(products):
                a @ b
            synchronize(device)
            dist.barrier()
            best = max(best, products * 2 * rows * n * n / (time.perf_counter() - started))
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
