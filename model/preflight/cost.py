"""Cost beside vanilla: parameters, FLOPs and activations at the target's size, step time, graph breaks."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..catalogue import VARIANTS
from ..config import GPTConfig
from ..gpt import GPT
from ..plugin import in_words
from ..treatment import Treatment
from .candidate import Candidate, seed_all
from .report import Doubtful, Report

STEPS = 3
COMPILED_LAYERS = 3
# torch counts the GPU's kernels only.
_ATTENTION_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q, k, v
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def check_cost(candidate: Candidate, report: Report) -> None:
    """Add what the design costs."""
    report.run("cost.size", lambda: _size(candidate))
    report.run("cost.step_time", lambda: _step_time(candidate))
    report.run("cost.compile", lambda: _compile(candidate))


def _size(candidate: Candidate) -> str:
    vanilla = replace(candidate.config, **VARIANTS["vanilla"].design)
    theirs = _measure(vanilla)
    try:
        ours = _measure(candidate.config, candidate.treatment)
    except Exception as error:
        raise Doubtful(
            f"not measured: the design reads values, which tensors without memory lack "
            f"({in_words(error)[:200]})"
        ) from error
    for name in ours:
        candidate.numbers |= {name: ours[name], f"{name}_vanilla": theirs[name]}
    more = {name: 100 * (ours[name] / theirs[name] - 1) for name in ours}
    return (
        f"{ours['parameters']:,} parameters ({more['parameters']:+.2f} % of vanilla), "
        f"{ours['flops_per_token'] / 1e9:.3g} GFLOPs per token ({more['flops_per_token']:+.1f} %), "
        f"{ours['activation_bytes_per_token'] / 1e3:,.0f} kB of activations per token in bf16, uncompiled "
        f"({more['activation_bytes_per_token']:+.1f} %)"
    )


def _measure(config: GPTConfig, treatment: Treatment | None = None) -> dict[str, float]:
    """What a model is and takes; nothing is allocated, because its tensors have shapes only.

    Returns parameters; FLOPs per token of forward and backward, which count the whole square of attention's
    scores; and bytes per token that bf16 keeps for backward, but for the loss, which keeps none.
    """
    kept: dict[int, int] = {}
    alive: list[Any] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            alive.append(storage)
            kept[storage._cdata] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION_FLOPS)
    with FakeTensorMode(), _default_dtype(torch.bfloat16):
        seed_all()
        model = GPT(config).train()
        model.treat(treatment or Treatment())
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        idx = torch.zeros(1, config.block_size, dtype=torch.int64)
        with counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                hidden = model.hidden(idx)
            model.lm_head(hidden).sum().backward()
    return {
        "parameters": model.num_parameters(),
        "flops_per_token": counter.get_total_flops() / config.block_size,
        "activation_bytes_per_token": sum(n for key, n in kept.items() if key not in own) / config.block_size,
    }


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _step_time(candidate: Candidate) -> str:
    """Forward and backward at the small size, in turn with vanilla."""
    models = [candidate.build().train(), candidate.build(**VARIANTS["vanilla"].design).train()]
    idx = candidate.tokens(4, candidate.length(128))
    seconds: list[list[float]] = [[], []]
    for _ in range(STEPS + 1):
        for model, times in zip(models, seconds, strict=True):
            begin = time.perf_counter()
            _, loss = model(idx, idx)
            loss.backward()
            times.append(time.perf_counter() - begin)
            model.zero_grad(set_to_none=True)
    ours, theirs = (statistics.median(times[1:]) for times in seconds)
    candidate.numbers |= {"step_seconds": ours, "step_seconds_vanilla": theirs}
    return f"{ours / theirs:.2f} times vanilla's, uncompiled, at width {candidate.small.n_embd} on this CPU"


def _compile(candidate: Candidate) -> str:
    """Graph breaks of a few layers under torch.compile."""
    import torch._dynamo as dynamo

    model = candidate.build(n_layer=min(candidate.small.n_layer, COMPILED_LAYERS)).train()
    idx = candidate.tokens(2, candidate.length(32))
    dynamo.reset()
    try:
        found = dynamo.explain(model.hidden)(idx)  # the loss is not compiled with it
    except Exception as error:
        raise Doubtful(f"torch.compile fails: {in_words(error)[:300]}") from error
    finally:
        dynamo.reset()
    candidate.numbers["graph_breaks"] = found.graph_break_count
    if found.graph_break_count:
        reasons = sorted({" ".join(reason.reason.split())[:160] for reason in found.break_reasons})
        raise Doubtful(
            f"{found.graph_break_count} graph breaks under torch.compile: {'; '.join(reasons[:2])}"
        )
    return f"torch.compile takes {min(candidate.small.n_layer, COMPILED_LAYERS)} layers without a graph break"
