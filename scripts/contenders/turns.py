"""A rank's part of `bench_engine.py`: the contenders in turn, each at its best micro-batch, and a table."""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from training.engine.cpu_bf16 import bf16_arithmetic
from training.engine.hardware import peak_flops
from training.engine.ranks import Ranks, join_ranks

from .bench import Bench
from .lineup import BARE, CONTENDERS, NORMLAB, OURS
from .memory import load_libraries, peak_memory, release
from .products import Peak


class Measured(NamedTuple):
    """A turn, as all ranks have it."""

    tokens_per_s: float
    tokens_per_cpu_s: float
    peak_bytes: float
    loss: float


Turns = dict[str, dict[int, list[Measured]]]
"""By contender and micro-batch."""


def join(rank: int, world_size: int, port: int) -> Ranks:
    """Be that rank of so many on this machine, of which the first alone prints."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return join_ranks()


def one_turn(rank: int, world_size: int, options: argparse.Namespace, port: int, file: Path) -> None:
    """NormLab's turn alone; rank 0 writes it to `file`."""
    ranks = join(rank, world_size, port)
    with bf16_arithmetic():
        turn = CONTENDERS[NORMLAB](Bench(options, options.micro_batch, ranks))
    if rank == 0:
        file.write_text(json.dumps(turn._asdict()) + "\n")
    leave()


def run(rank: int, world_size: int, options: argparse.Namespace, port: int) -> None:
    """All rounds on one rank; rank 0 prints."""
    ranks = join(rank, world_size, port)
    benches = {size: Bench(options, size, ranks) for size in options.micro_batches}
    peaks = {size: Peak(bench) for size, bench in benches.items()}
    for peak in peaks.values():
        peak.measure()
    load_libraries()
    turns: Turns = {name: {} for name in CONTENDERS if name == NORMLAB or name in options.only}
    for number in range(options.rounds):
        for name, of_sizes in turns.items():
            # The first round finds the best size, with which the others go on.
            for size in options.micro_batches if number == 0 else filter(None, [best_size(of_sizes)]):
                turn = measure(benches[size], name)
                of_sizes.setdefault(size, []).extend([turn] if turn else [])
                print(f"round {number + 1}, {name}, micro-batch {size}: {in_words(turn)}", flush=True)
        for size in {best_size(of_sizes) for of_sizes in turns.values()} - {None}:
            peaks[size].measure()
    report(benches, turns, peaks, options.json if ranks.rank == 0 else None)
    leave()


def leave() -> None:
    """End the process group, all ranks together."""
    dist.barrier()
    dist.destroy_process_group()


def measure(bench: Bench, name: str) -> Measured | None:
    """One turn of a contender; None where it runs out of a GPU's memory, as on all ranks alike."""
    try:
        with peak_memory(bench.device) as peak, bf16_arithmetic():
            turn = CONTENDERS[name](bench)
    except torch.OutOfMemoryError:
        turn = None
    release(bench.device)
    if turn is None:
        return None
    here = torch.tensor([turn.seconds, turn.cpu_seconds, peak["over"]], dtype=torch.float64)
    of_ranks = torch.tensor(bench.ranks.gather(here.tolist()), dtype=torch.float64)
    seconds, _, over = of_ranks.amax(dim=0).tolist()
    cpu_seconds = of_ranks[:, 1].sum().item()
    rate, of_cpu = bench.tokens_per_step / seconds, bench.tokens_per_step / cpu_seconds
    return Measured(rate, of_cpu, over, turn.loss)


def best_size(of_sizes: dict[int, list[Measured]]) -> int | None:
    """The micro-batch with most tokens per second, of those that fit; None where none does."""
    rates = {size: median(of, "tokens_per_s") for size, of in of_sizes.items() if of}
    return max(rates, key=rates.__getitem__) if rates else None


def median(turns: list[Measured], what: str) -> float:
    """Over the rounds."""
    return statistics.median(getattr(turn, what) for turn in turns)


def in_words(turn: Measured | None) -> str:
    """A turn in a line."""
    if turn is None:
        return "out of memory"
    return (
        f"{turn.tokens_per_s:,.0f} tokens/s, {turn.tokens_per_cpu_s:,.0f} per CPU second, "
        f"{turn.peak_bytes / 2**20:,.0f} MiB, loss {turn.loss:.4f}"
    )


def report(benches: dict[int, Bench], turns: Turns, peaks: dict[int, Peak], json_file: str | None) -> None:
    """The table, the ratios and the goals. All ranks call it."""
    rows: dict[str, dict[str, Any]] = {}
    bench = next(iter(benches.values()))
    at = {size: peak.flops_per_s() for size, peak in peaks.items()}
    for name, of_sizes in turns.items():
        if (size := best_size(of_sizes)) is not None:
            of = of_sizes[size]
            rate = median(of, "tokens_per_s")
            rows[name] = {
                "tokens_per_s": rate,
                "tokens_per_cpu_s": median(of, "tokens_per_cpu_s"),
                "peak_bytes": median(of, "peak_bytes"),
                "micro_batch": size,
                "gemm_share": rate * bench.flops_per_token / at[size],
                "loss": of[-1].loss,
            }
            if known := known_peak(bench.ranks):
                rows[name]["mfu"] = rate * bench.flops_per_token / known
    facts: dict[str, Any] = {"contenders": rows}
    facts["out_of_memory"] = {
        name: [size for size, of in of_sizes.items() if not of] for name, of_sizes in turns.items()
    }
    facts["products"] = {size: {"flops_per_s": at[size], "of": peaks[size].table()} for size in peaks}
    print_table(rows, rows.get(NORMLAB))
    for name, sizes in facts["out_of_memory"].items():
        if sizes:
            print(f"{name} ran out of memory at micro-batch {', '.join(map(str, sizes))}")
    print_products(facts["products"], bench.ranks.world_size)
    if NORMLAB in rows:
        facts |= ratios(rows)
    if json_file:
        Path(json_file).write_text(json.dumps(facts, indent=2) + "\n")


def known_peak(ranks: Ranks) -> float | None:
    """FLOP/s of all ranks' GPUs by their data sheet, None where it is unknown."""
    known = peak_flops(torch.cuda.get_device_name()) if ranks.device.type == "cuda" else None
    return known * ranks.world_size if known else None


def print_table(rows: dict[str, dict[str, Any]], ours: dict[str, Any] | None) -> None:
    """A line for each contender, at its best micro-batch."""
    print(
        f"\n{'contender':<34} {'micro':>5} {'tokens/s':>10} {'of ours':>8} {'per CPU s':>10} {'peak MiB':>9} "
        f"{'of ours':>8} {'of GEMM':>8} {'MFU':>6}"
    )
    for name, row in rows.items():
        rate, of_cpu, peak = row["tokens_per_s"], row["tokens_per_cpu_s"], row["peak_bytes"]
        of_ours = [f"{rate / ours['tokens_per_s']:.2f}", f"{peak / ours['peak_bytes']:.2f}"] if ours else "--"
        mfu = f"{row['mfu']:.1%}" if "mfu" in row else "-"
        print(
            f"{name:<34} {row['micro_batch']:>5} {rate:>10,.0f} {of_ours[0]:>8} {of_cpu:>10,.0f} "
            f"{peak / 2**20:>9,.0f} {of_ours[1]:>8} {row['gemm_share']:>8.2f} {mfu:>6}"
        )


def print_products(of_sizes: dict[int, dict[str, Any]], ranks: int) -> None:
    """How fast all ranks multiply at each shape, where they do nothing else."""
    for size, found in of_sizes.items():
        together = f"{found['flops_per_s'] / 1e9:,.0f} GFLOP/s"
        print(f"\nproducts of a step at micro-batch {size}, {ranks} rank(s): {together}")
        for name, of in found["of"].items():
            shape, rate = " x ".join(map(str, of["shape"])), of["flops_per_s"] / 1e9
            print(f"  {name:<20} {shape:<24} {of['share_of_flops']:>6.1%} {rate:>10,.0f} GFLOP/s")


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What the goals are about, said and returned by name."""
    ours, peers = rows[NORMLAB], {name: row for name, row in rows.items() if name not in OURS}
    print(f"\nshare of the GEMM peak in the model's own FLOPs: {ours['gemm_share']:.2f} (goal 0.6)")
    found = {"gemm_share": ours["gemm_share"]}
    if peers:
        fastest = max(peers, key=lambda name: peers[name]["tokens_per_s"])
        leanest = min(peers, key=lambda name: peers[name]["peak_bytes"])
        found["speed_ratio"] = ours["tokens_per_s"] / peers[fastest]["tokens_per_s"]
        found["memory_ratio"] = ours["peak_bytes"] / peers[leanest]["peak_bytes"]
        print(f"tokens/s over the best of the peers ({fastest}): {found['speed_ratio']:.2f} (goal 1.3)")
        print(f"peak memory over the least of the peers ({leanest}): {found['memory_ratio']:.2f} (goal 0.6)")
    if BARE in rows:
        found["bare_ratio"] = ours["tokens_per_s"] / rows[BARE]["tokens_per_s"]
        print(f"tokens/s over the bare loop without DeepSpeed: {found['bare_ratio']:.3f} (goal 0.98)")
    return found
