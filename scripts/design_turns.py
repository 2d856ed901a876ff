"""A design beside vanilla, for `bench_designs.py`: both trained in turn, timed and weighed."""

import gc
import resource
import statistics
import time
from itertools import accumulate
from typing import Any

import torch
import torch._inductor.config
from torch.profiler import ProfilerActivity

from model import GPT, VARIANTS, GPTConfig, flops_per_token
from training.engine.compilation import compile_blocks
from training.engine.cpu_bf16 import bf16_arithmetic


def setting(
    device: torch.device, shape: dict[str, int], compiled: bool, turns: dict[str, int]
) -> dict[str, Any]:
    """What all rows of a file have in common."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "compiled": compiled,
        **shape,
        **turns,
    }


class Trained:
    """A design that trains on the same tokens at each step.

    Args:
        name: of the catalogue.
        device: where it trains.
        shape: of `GPTConfig`, with the `micro_batch`.
        compiled: whether its blocks are.

    Attributes:
        said: what compilation warned of.
        compile_s: what the first step took: on a GPU by the clock, on a CPU of this process and the C++
            compilers that it started.
    """

    def __init__(self, name: str, device: torch.device, shape: dict[str, int], compiled: bool) -> None:
        sizes: dict[str, Any] = {key: value for key, value in shape.items() if key != "micro_batch"}
        torch.manual_seed(1)
        self.device, self.said = device, list[str]()
        self.gpt = GPT(GPTConfig(**sizes, **VARIANTS[name].design)).to(device).bfloat16()
        if compiled:
            compile_blocks(self.gpt, self.said.append)
        self.optimizer = torch.optim.AdamW(self.gpt.parameters(), lr=1e-4, fused=True)
        size = (shape["micro_batch"], shape["block_size"] + 1)
        tokens = torch.randint(0, shape["vocab_size"], size, generator=torch.Generator().manual_seed(1))
        self.inputs, self.targets = tokens[:, :-1].to(device), tokens[:, 1:].to(device)
        began = now(device)
        self.step()
        self.compile_s = now(device) - began
        self.step()  # the optimizer's state is there

    def step(self) -> None:
        with bf16_arithmetic():
            _, loss = self.gpt(self.inputs, self.targets)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def milliseconds(self, steps: int) -> float:
        """Of a step, the mean of some."""
        if self.device.type == "cpu":
            began = time.process_time()
            for _ in range(steps):
                self.step()
            return 1000 * (time.process_time() - began) / steps
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(steps):
            self.step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / steps

    def bytes(self) -> int:
        """Weights, optimizer state and buffers, and at most what a step needs beside them."""
        states = [x for state in self.optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
        kept = {id(x): x.nbytes for x in (*self.gpt.parameters(), *self.gpt.buffers(), *states)}
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step()
            torch.cuda.synchronize()
            return sum(kept.values()) + torch.cuda.max_memory_allocated() - before
        with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
            self.step()
        assert profile.profiler and profile.profiler.kineto_results
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        moved = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        return sum(kept.values()) + max(accumulate(moved))


def measure(
    name: str, device: torch.device, shape: dict[str, int], compiled: bool, rounds: int, steps: int
) -> dict[str, Any]:
    """The row of a design: ratios over vanilla's, milliseconds and bytes of both, seconds of compilation."""
    if device.type == "cpu":
        torch.set_num_threads(1)
        torch._inductor.config.compile_threads = 1  # in this process, so that its CPU time is known
    torch._dynamo.reset()
    both = [Trained(which, device, shape, compiled) for which in ("vanilla", name)]
    ms: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            ms[which].append(both[which].milliseconds(steps))
    facts = [
        {
            "flops": flops_per_token(trained.gpt),
            "parameters": trained.gpt.num_parameters(),
            "time": statistics.median(of),
            "memory": trained.bytes(),
        }
        for trained, of in zip(both, ms, strict=True)
    ]
    ratios = {f"{key}_ratio": facts[1][key] / facts[0][key] for key in facts[0]}
    ratios["time_ratio"] = statistics.median(theirs / ours for ours, theirs in zip(*ms, strict=True))
    row = {**ratios, "vanilla": facts[0], "design": facts[1], "ms": ms}
    row |= {"compile_s": both[1].compile_s, "vanilla_compile_s": both[0].compile_s, "said": both[1].said}
    del both
    gc.collect()
    return row


def now(device: torch.device) -> float:
    """Seconds: the clock's once a GPU has caught up, or the CPU's of this process and those it waited for."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(of.ru_utime + of.ru_stime for of in used)
