"""Time the pieces of GPT-2 Medium's step on one GPU, each by itself.

    python scripts/gpu_check/probe.py [--micro_batch 24] [--json FILE]

A time is the median of CUDA-event times, in milliseconds. `ideal` is what the counted FLOPs or bytes take at
the peaks that were measured first. `--device cpu` with small sizes is a rehearsal: what only a GPU has says
FAILED.
"""

from model.checkout import refuse_other_checkout

refuse_other_checkout(__file__)

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import GPT, GPTConfig, loss
from model.flops import flops_per_token
from training.engine.compilation import compile_blocks
from training.engine.hardware import peak_flops

Note = Callable[[float], str]
FLASH, CUDNN = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION


class Probe:
    """What all measurements share: the device, the sizes, the peaks, and the times so far in `found`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.B, self.T, self.C = options.micro_batch, options.block_size, options.n_embd
        self.H, self.L, self.V = options.n_head, options.n_layer, options.vocab_size
        self.N = self.B * self.T
        self.found: dict[str, float] = {}
        self.flop_rate = self.byte_rate = 0.0  # per millisecond

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16)

    def milliseconds(self, function: Callable[[], object], repeats: int = 10, warmup: int = 3) -> float:
        """The median of `repeats` calls after `warmup` calls."""
        for _ in range(warmup):
            function()
        spent = []
        for _ in range(repeats):
            if self.device.type == "cpu":
                started = time.perf_counter()
                function()
                spent.append(1000 * (time.perf_counter() - started))
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            spent.append(begin.elapsed_time(end))
        return statistics.median(spent)

    def say(self, name: str, ms: float, note: str = "") -> None:
        self.found[name] = ms
        print(f"{name:<58} {ms:9.3f} ms  {note}", flush=True)

    def measure(
        self, name: str, function: Callable[[], object], note: Note | None = None, **counts: int
    ) -> None:
        """Print the time of `function`, or that it failed."""
        try:
            ms = self.milliseconds(function, **counts)
            self.say(name, ms, note(ms) if note else "")
        except Exception as error:  # a kernel that is missing here does not end the others
            print(f"{name:<58} FAILED {type(error).__name__}: {str(error).splitlines()[0][:120]}", flush=True)

    def flops(self, count: float) -> Note:
        return lambda ms: f"{count / ms / 1e9:5.0f} TFLOP/s, ideal {count / self.flop_rate:.3f}"

    def bytes(self, count: float) -> Note:
        return lambda ms: f"{count / ms / 1e9:5.2f} TB/s, ideal {count / self.byte_rate:.3f}"

    def say_peak_memory(self, more: str = "") -> None:
        """Print the allocator's peak since this was called before."""
        gib = 0.0
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            gib = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        print(f"{'':<58} peak {gib:.1f} GiB{more}")


def peaks(p: Probe) -> None:
    """A large product and a large copy."""
    n = 256 if p.device.type == "cpu" else 8192
    a, b = p.randn(n, n), p.randn(n, n)
    ms = p.milliseconds(lambda: a @ b)
    p.flop_rate = 2 * n**3 / ms
    p.say(f"bf16 product {n}^3", ms, f"{p.flop_rate / 1e9:.0f} TFLOP/s")
    source = p.randn(n * n * 8)
    target = torch.empty_like(source)
    ms = p.milliseconds(lambda: target.copy_(source))
    p.byte_rate = 2 * source.nbytes / ms
    p.say(f"copy of {source.nbytes / 2**30:.2f} GiB", ms, f"{p.byte_rate / 1e9:.2f} TB/s")


def linears(p: Probe) -> None:
    """The products of a block, forward."""
    narrow, wide = p.randn(p.N, p.C), p.randn(p.N, 4 * p.C)
    for name, given, out in (
        ("c_attn", narrow, 3 * p.C),
        ("c_proj", narrow, p.C),
        ("c_fc", narrow, 4 * p.C),
        ("mlp.c_proj", wide, p.C),
    ):
        weight, bias = p.randn(out, given.shape[1]), p.randn(out)
        count = 2 * p.N * weight.numel()
        p.measure(f"linear {name}, forward", partial(F.linear, given, weight, bias), p.flops(count))


def attentions(p: Probe) -> None:
    """Causal attention as model/layers.py lays it out, views of one (B, T, 3C); half of its FLOPs count."""
    qkv = p.randn(p.B, p.T, 3 * p.C).requires_grad_()
    grad = p.randn(p.B, p.T, p.C)
    count = 2 * p.B * p.T * p.T * p.C

    def forward(kernels: list[SDPBackend]) -> torch.Tensor:
        q, k, v = (part.unflatten(2, (p.H, p.C // p.H)).transpose(1, 2) for part in qkv.split(p.C, dim=2))
        with sdpa_kernel(kernels, set_priority=True) if kernels else nullcontext():
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).flatten(2)

    def both(kernels: list[SDPBackend]) -> None:
        qkv.grad = None
        forward(kernels).backward(grad)

    kernels: list[SDPBackend]
    for name, kernels in (("default", []), ("flash", [FLASH]), ("cuDNN", [CUDNN])):
        p.measure(f"attention, {name}, forward", torch.no_grad()(partial(forward, kernels)), p.flops(count))
        p.measure(f"attention, {name}, forward and backward", partial(both, kernels), p.flops(3.5 * count))


def head(p: Probe) -> None:
    """The chunked loss of model/loss.py as it is, at other chunks and with static shapes, and its pieces."""
    hidden = p.randn(p.N, p.C).requires_grad_()
    rows = (0.02 * p.randn(p.V, p.C)).requires_grad_()
    targets = torch.randint(0, p.V, (p.N,), device=p.device)

    def both(chunk: int) -> None:
        hidden.grad = rows.grad = None
        loss._MeanLoss.apply(hidden, rows, targets, chunk).backward()

    count = 6 * p.N * p.V * p.C
    for chunk in sorted({4096, 8192, 16384, p.N}):
        p.measure(f"loss, chunks of {chunk}", partial(both, chunk), p.flops(count))
        p.say_peak_memory()
    compiled, size = loss._compiled, min(4096, p.N)
    logits, y, all_of_them = p.randn(size, p.V), targets[:size], torch.tensor(p.N, device=p.device)
    for shapes, dynamic in (("dynamic", True), ("static", False)):
        parts = {f: torch.compile(f, dynamic=dynamic) for f in (loss._statistics, loss._to_gradient)}
        loss._compiled = parts.__getitem__  # type: ignore[assignment]
        p.measure(f"loss, chunks of 4096, {shapes} shapes", partial(both, 4096), p.flops(count))
        log_sum_exp, _ = parts[loss._statistics](logits, y)
        gradient = partial(parts[loss._to_gradient], logits, log_sum_exp, y, all_of_them)
        reads = partial(parts[loss._statistics], logits, y)
        p.measure(f"  a chunk's sums, {shapes} shapes", reads, p.bytes(logits.nbytes))
        p.measure(f"  a chunk's gradient, {shapes} shapes", gradient, p.bytes(2 * logits.nbytes))
    loss._compiled = compiled
    g, x, total = logits.T, hidden.detach()[:size], torch.zeros(p.V, p.C, device=p.device)
    one = p.flops(2 * size * p.V * p.C)
    fp32 = torch.float32
    name = "  gradient of the rows: "
    p.measure(name + "mm to fp32, then add", lambda: total.add_(torch.mm(g, x, out_dtype=fp32)), one)
    p.measure(
        name + "addmm to fp32 in place", lambda: torch.addmm(total, g, x, out_dtype=fp32, out=total), one
    )
    p.measure(name + "addmm to fp32", lambda: torch.addmm(total, g, x, out_dtype=fp32), one)
    p.measure(name + "mm to bf16", lambda: torch.mm(g, x), one)


def models(p: Probe) -> None:
    """The whole model without an engine, its blocks uncompiled and compiled as train.py does it."""
    idx = torch.randint(0, p.V, (p.B, p.T), device=p.device)
    config = GPTConfig(n_layer=p.L, n_head=p.H, n_embd=p.C, block_size=p.T, vocab_size=p.V)
    peak = peak_flops(torch.cuda.get_device_name()) if p.device.type == "cuda" else None

    def rate(ms: float) -> str:
        return f"MFU {1000 * flops / ms / peak:.1%}" if peak else f"{flops / ms / 1e9:.3f} TFLOP/s"

    for compiled in (False, True):
        torch.manual_seed(1)
        with p.device:
            gpt = GPT(config).to(torch.bfloat16)
        flops = flops_per_token(gpt) * p.N
        if compiled:
            compile_blocks(gpt, lambda text: print("compile:", text))
        for name, kernels in (("flash", [FLASH]), ("cuDNN", [CUDNN, FLASH])):
            torch._dynamo.reset()

            def step(gpt: GPT = gpt, kernels: list[SDPBackend] = kernels) -> None:
                gpt.zero_grad()
                with sdpa_kernel(kernels, set_priority=True):
                    gpt(idx, idx)[1].backward()

            label = f"model, {'compiled' if compiled else 'eager'}, {name}: "
            started = time.perf_counter()
            p.measure(label + "forward and backward", step, rate, repeats=5, warmup=2)
            p.say_peak_memory(f", {time.perf_counter() - started:.0f} s")
            if (
                compiled
            ):  # while the GPU is idle, a call takes as long as the host needs to launch its kernels
                started = time.perf_counter()
                step()
                p.say(label + "launched by the host in", 1000 * (time.perf_counter() - started))
                p.say_peak_memory()
        del gpt, step
        if p.device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sizes = {
        "micro_batch": 24,
        "block_size": 1024,
        "n_embd": 1024,
        "n_head": 16,
        "n_layer": 24,
        "vocab_size": 50304,
    }
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--json", help="a file for the times")
    options = parser.parse_args()
    device = "CPU" if options.device == "cpu" else torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    probe = Probe(options)
    for part in (peaks, linears, attentions, head, models):
        part(probe)
    if options.json:
        Path(options.json).write_text(json.dumps(probe.found, indent=2) + "\n")


if __name__ == "__main__":
    main()
