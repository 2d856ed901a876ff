"""How fast this machine multiplies at the shapes of a training step: how long a step takes at least."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from model import GPT, GPTConfig
from model.loss import CHUNK_IN_PLACE, even_chunk

from .bench import Bench, clocks

GO_S = 0.1
"""A rate is that of products one after the other for so many seconds, so that their start does not count."""


@dataclass(frozen=True)
class Product:
    """A matrix product of a training step, or attention.

    Attributes:
        name: whose, and which of its three: `forward`, `input` and `weight` gradients; attention has one.
        shape: (rows, inner, columns); of attention (sequences, heads, tokens, head size)
        flops: of one
        times: how often a micro-batch makes it; the head's may be a broken number, where its last chunk of
            rows is smaller
    """

    name: str
    shape: tuple[int, ...]
    flops: int
    times: float


def products(config: GPTConfig, micro_batch: int, chunk: int) -> list[Product]:
    """What forward and backward of a micro-batch multiply: every linear layer three times, and attention.

    Their FLOPs are those of `flops_per_token`. Attention's count the half that causal kernels skip, as there.

    Args:
        config: the model's.
        micro_batch: sequences.
        chunk: rows at a time that the head takes, at most.
    """
    with torch.device("meta"):
        gpt = GPT(config)
    rows = micro_batch * config.block_size
    layers: dict[tuple[str, int, int, int], float] = {}
    for name, module in gpt.named_modules():
        if isinstance(module, nn.Linear):
            at_once = even_chunk(rows, chunk) if module is gpt.lm_head else rows
            of = ".".join(name.split(".")[-2:])  # the layers' alike: `attn.c_proj`
            key = (of, at_once, module.in_features, module.out_features)
            layers[key] = layers.get(key, 0) + rows / at_once
    found = []
    for (name, n, inside, outside), times in layers.items():
        shapes = {
            "forward": (n, inside, outside),
            "input": (n, outside, inside),
            "weight": (outside, n, inside),
        }
        flops = 2 * n * inside * outside
        found += [Product(f"{name} {which}", shape, flops, times) for which, shape in shapes.items()]
    heads, tokens = config.n_head, config.block_size
    attention = (micro_batch, heads, tokens, config.n_embd // heads)
    return [*found, Product("attention", attention, 12 * rows * tokens * config.n_embd, config.n_layer)]


class Peak:
    """The best rate of each product that was seen on this rank, all ranks multiplying at once.

    Attributes:
        products: what a micro-batch multiplies.
    """

    def __init__(self, bench: Bench) -> None:
        chunk = CHUNK_IN_PLACE["cpu" if bench.device.type == "cpu" else "cuda"]
        self.products = products(bench.config, bench.micro_batch, chunk)
        self._bench = bench
        self._rates = dict.fromkeys(self.products, 0.0)

    def measure(self) -> None:
        """Look once more. All ranks call it.

        On CPUs by torch's bf16 kernel or in fp32, whichever is faster.
        """
        on_cpu = self._bench.device.type == "cpu"
        fast_bf16 = not on_cpu or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        dtypes = [torch.bfloat16] if fast_bf16 else []  # else a hundred times slower than fp32
        dtypes += [torch.float32] if on_cpu else []
        for product in self.products:
            for dtype in dtypes:
                seconds = self._seconds(call_of(product, dtype, self._bench.device))
                self._rates[product] = max(self._rates[product], product.flops / seconds)

    def _seconds(self, multiply: Callable[[], Any]) -> float:
        """Of one call on this rank, of as many as take `GO_S` on the slowest."""
        multiply()
        once = torch.tensor(self._run(multiply, 1), dtype=torch.float64, device=self._bench.device)
        dist.all_reduce(once, dist.ReduceOp.MAX)  # also: all ranks begin together
        times = math.ceil(GO_S / once.item())
        return self._run(multiply, times) / times

    def _run(self, multiply: Callable[[], Any], times: int) -> float:
        """Seconds of so many calls; on CPUs those of its threads, which other processes do not lengthen."""
        self._bench.synchronize()
        begun = clocks()
        for _ in range(times):
            multiply()
        self._bench.synchronize()
        wall, cpu = (clocks() - begun).tolist()
        return min(wall, cpu / torch.get_num_threads()) if self._bench.device.type == "cpu" else wall

    def table(self) -> dict[str, dict[str, Any]]:
        """Of each product: its shape, its share of the FLOPs, and FLOP/s of all ranks. All ranks call it."""
        whole = sum(product.flops * product.times for product in self.products)
        return {
            product.name: {
                "shape": product.shape,
                "share_of_flops": product.flops * product.times / whole,
                "flops_per_s": rate,
            }
            for product, rate in self._rates_of_all_ranks()
        }

    def flops_per_s(self) -> float:
        """What all ranks reach together if they do nothing but a step's products. All ranks call it.

        That is FLOPs over seconds, and the seconds are the sum over products of FLOPs over their rate.
        """
        work = [(product.flops * product.times, rate) for product, rate in self._rates_of_all_ranks()]
        return sum(flops for flops, _ in work) / sum(flops / rate for flops, rate in work)

    def _rates_of_all_ranks(self) -> Iterator[tuple[Product, float]]:
        rates = torch.tensor(list(self._rates.values()), dtype=torch.float64, device=self._bench.device)
        dist.all_reduce(rates)
        return zip(self.products, rates.tolist(), strict=True)


def call_of(product: Product, dtype: torch.dtype, device: torch.device) -> Callable[[], Any]:
    """Makes the product once, on operands laid out as in training: weights (out, in), the gradient's left one
    transposed."""

    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device).to(dtype)

    if product.name == "attention":
        q, k, v = (drawn(*product.shape).requires_grad_() for _ in range(3))
        gradient = drawn(*product.shape)

        def attend() -> None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            torch.autograd.grad(mixed, (q, k, v), gradient)

        return attend
    rows, inner, columns = product.shape
    which = product.name.rpartition(" ")[2]
    a = drawn(inner, rows).T if which == "weight" else drawn(rows, inner)
    b = drawn(columns, inner).T if which == "forward" else drawn(inner, columns)
    result = torch.empty(rows, columns, dtype=dtype, device=device)
    return lambda: torch.mm(a, b, out=result)
