"""Causality: what a position puts out does not change, but for rounding, with anything that comes after it.

Perturbations find what a forward computes, with or without gradient; gradients, which must be exactly 0, find
structure whatever its coefficient. Weights are drawn at random, so that no closed gate hides a path.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..gpt import GPT
from . import independence
from .candidate import (
    FIRST_STEPS,
    SEED,
    STEADY_STEP,
    Candidate,
    at_step,
    each_layer,
    embeddings,
    hidden,
    logits,
)
from .parts import full_width, norm_alone
from .perturb import (
    ADVICE,
    SHORT,
    WINDOW,
    Change,
    beyond_rounding,
    changed_streams,
    cuts,
    first_change,
    tail_mask,
    with_rounding,
)
from .report import Doubtful, Refused, Report


def check_causality(candidate: Candidate, report: Report) -> None:
    """Add the checks of causality."""
    report.run("causality.norm", lambda: norm_alone(candidate))
    report.run("causality.layers", lambda: with_rounding(candidate, _layers))
    looks_back = report.run("causality.model", lambda: with_rounding(candidate, _model))
    report.run("causality.lengths", lambda: with_rounding(candidate, _lengths))
    report.run("causality.gradient", lambda: _gradient(candidate))
    if looks_back:  # else its future is in every call
        report.run("causality.memory", lambda: with_rounding(candidate, independence.memory))
    report.run("causality.targets", lambda: independence.targets(candidate))
    report.run("causality.width", lambda: with_rounding(candidate, full_width))
    if candidate.reads_step():
        report.run("causality.first_steps", lambda: with_rounding(candidate, _first_steps))


def _compare(
    candidate: Candidate, blocks: Sequence[nn.Module], x: torch.Tensor, at: Sequence[int], ways: Sequence[int]
) -> None:
    """Each block alone on the stream x (1, T, C), a batch with one row per cut: no row sees past its own.

    Rows need sequences of a batch to be independent; otherwise each cut is a batch of its own.
    """

    def find() -> Change | None:
        before = each_layer(blocks, rows)
        for way in ways:
            after = each_layer(blocks, changed_streams(rows, tail, way))
            for layer, (y, z) in enumerate(zip(before, after, strict=True)):
                if found := first_change(y, z, tail):
                    return replace(found, words=f"layer {layer}: {found.words}")
        return None

    for group in [list(at)] if candidate.apart else [[cut] for cut in at]:
        rows, tail = x.expand(len(group), -1, -1), tail_mask(group, x.shape[1])
        if found := beyond_rounding(candidate, find):
            raise Refused(f"{found}; {ADVICE}")


def _layers(candidate: Candidate) -> str:
    """Every block alone on random streams: all likely cuts in a window, and the whole block size."""
    if not candidate.alone:
        raise Doubtful("not checked: the blocks do not run one by one")
    window = candidate.length(WINDOW)
    if window == 1:
        raise Doubtful("not checked: model.block_size is 1")
    model = candidate.model()
    with torch.no_grad():
        _compare(candidate, model.blocks, candidate.stream(1, window), cuts(candidate, window), (0, 1))
        length = candidate.config.block_size
        if candidate.thorough and length > window:
            short = candidate.length(SHORT)
            _compare(candidate, model.blocks, candidate.stream(1, short), cuts(candidate, short), (0,))
            _compare(candidate, model.blocks, candidate.stream(1, length), [length // 2 - 1], (0,))
    return f"{len(model.blocks)} layers alone, exact in windows of {window} tokens"


def _model(candidate: Candidate) -> str:
    """The whole model over large changes of the embeddings after a cut, and over other tokens."""
    lengths = (
        {candidate.length(WINDOW), candidate.length(SHORT)}
        if candidate.thorough
        else {candidate.length(WINDOW)}
    )
    for length in sorted(lengths):
        at = cuts(candidate, length)
        for group in [at] if candidate.apart else [[cut] for cut in at]:
            _compare_model(candidate, group, length)
    return f"exact at every checked position of {max(lengths)} tokens"


def _compare_model(candidate: Candidate, at: Sequence[int], length: int) -> None:
    tail = tail_mask(at, length)
    idx = candidate.tokens(1, length).expand(len(at), -1)
    other = torch.where(tail, candidate.tokens(len(at), length, SEED + 1), idx)
    model = candidate.model()

    def find() -> Change | None:
        before = logits(model, idx)
        if found := first_change(before, logits(model, other), tail):
            return found
        with embeddings(model, lambda x: changed_streams(x, tail, 0)):
            return first_change(before, logits(model, idx), tail)

    with torch.no_grad():
        if found := beyond_rounding(candidate, find):
            raise Refused(f"the model: {found}; {ADVICE}")
        if candidate.thorough:
            initial = candidate.model("initial").train()
            found = beyond_rounding(
                candidate, lambda: first_change(logits(initial, idx), logits(initial, other), tail)
            )
            if found:
                raise Refused(f"the model with its initial weights, in train mode: {found}; {ADVICE}")


def _lengths(candidate: Candidate) -> str:
    """Other lengths up to the block size, batches of 1 to 3, both modes, training's and other precisions."""
    limit = candidate.config.block_size
    lengths = sorted({n for n in (2, 3, 17, 33, 48, 65, 130, 257, limit) if 1 < n <= limit})
    if not candidate.thorough:
        lengths = [n for n in lengths if 3 < n <= 65 or n in (2, limit)]
    for number, length in enumerate(lengths):
        short = length <= 130
        batch = 1 + number % 3 if short else 1
        dtype = candidate.exact if short else torch.float32
        modes = (False, True) if candidate.thorough and short else (number % 2 == 1 or not short,)
        for training in modes:
            middle = (length // 2 - 1,)
            at = (0, *middle, length - 2) if candidate.thorough and length <= 257 else middle
            _compare_tokens(candidate.model(dtype=dtype), candidate, batch, length, at, training)
    if candidate.config.block_size > 4:
        for dtype in (torch.float32, torch.bfloat16):
            _compare_tokens(candidate.model(dtype=dtype), candidate, 2, candidate.length(24), (2,), True)
        dropped = candidate.model(dropout=0.1)
        with _KeepAll():
            _compare_tokens(dropped, candidate, 2, candidate.length(24), (2,), True, " with dropout")
    return f"exact at lengths {', '.join(map(str, lengths))}, in train and eval mode, also in fp32 and bf16"


class _KeepAll(TorchFunctionMode):
    """While it is entered, dropout scales and drops nothing: a design that gathers rows draws as many numbers
    as there are, and so moves all later draws."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {"p": 0.5, "training": True} | dict(zip(("input", "p", "training"), args, strict=False))
        given |= kwargs or {}
        if func is F.dropout and given["training"] and given["p"] < 1.0:
            return given["input"] / (1.0 - given["p"])
        return func(*args, **(kwargs or {}))


def _compare_tokens(
    model: GPT,
    candidate: Candidate,
    batch: int,
    length: int,
    at: Sequence[int],
    training: bool,
    more: str = "",
) -> None:
    model.train(training)
    idx = candidate.tokens(batch, length)

    def find() -> Change | None:
        before = hidden(model, idx)
        for cut in {max(cut, 0) for cut in at}:
            tail = tail_mask([cut] * batch, length)
            other = torch.where(tail, candidate.tokens(batch, length, SEED + 1 + cut), idx)
            if found := first_change(before, hidden(model, other), tail):
                return found
        return None

    with torch.set_grad_enabled(training and length < 40):
        if found := beyond_rounding(candidate, find):
            raise Refused(
                f"the model in {'train' if training else 'eval'} mode{more}, "
                f"{next(model.parameters()).dtype}, batch of {batch}: {found}; {ADVICE}"
            )


def _gradient(candidate: Candidate) -> str:
    """d(outputs up to a cut) / d(stream after it) is exactly 0, for every block and for the model."""
    window = candidate.length(WINDOW if candidate.thorough else SHORT)
    at = list(range(window - 1))
    if not candidate.apart:
        at = at[len(at) // 2 :][:1]
    tail = tail_mask(at, window)
    model = candidate.model().train()
    model.requires_grad_(False)
    try:
        if candidate.alone:
            x = candidate.stream(1, window).repeat(len(at), 1, 1).requires_grad_()
            outputs = each_layer(model.blocks, x)
            if _tail_gradient(sum_before(outputs, tail), x, tail)[0]:
                for layer in range(len(outputs)):
                    last = each_layer(model.blocks[: layer + 1], x)[-1:]
                    if (found := _tail_gradient(sum_before(last, tail), x, tail))[0]:
                        raise Refused(f"layer {layer}: {_reaches(*found)}")
        idx = candidate.tokens(1, window).expand(len(at), -1)
        leaf = model.transformer["wte"](idx).detach().clone().requires_grad_()
        with embeddings(model, lambda x: leaf):
            y = hidden(model, idx)
        if (found := _tail_gradient(sum_before([y], tail), leaf, tail))[0]:
            raise Refused(f"the model: {_reaches(*found)}")
    finally:
        model.requires_grad_(True)
    return "no gradient reaches a later position, whatever its size"


def sum_before(outputs: Sequence[torch.Tensor], tail: torch.Tensor) -> torch.Tensor:
    """A weighted sum of (B, T, C) outputs outside `tail` (B, T)."""
    generator = torch.Generator().manual_seed(SEED)
    total = torch.zeros((), dtype=torch.float64)
    for y in outputs:
        weights = torch.randn(y.shape, generator=generator, dtype=torch.float64) * ~tail[..., None]
        total = total + (y * weights.to(y)).sum()
    return total


def _tail_gradient(total: torch.Tensor, x: torch.Tensor, tail: torch.Tensor) -> tuple[float, int, int]:
    """The largest gradient of x (B, T, C) inside `tail` (B, T), its position, and the cut before it."""
    if not total.requires_grad:
        raise Refused("no gradient reaches the input: the output is detached")
    (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
    if gradient is None:
        raise Refused("no gradient reaches the input: the output does not depend on it")
    sizes = gradient.abs().amax(-1) * tail
    if not sizes.any():
        return 0.0, 0, 0
    row, position = (int(i) for i in sizes.nonzero()[0])
    return float(sizes[row, position]), position, int((~tail[row]).sum()) - 1


def _reaches(size: float, position: int, cut: int) -> str:
    return (
        f"the gradient of the outputs up to position {cut} reaches position {position} with size {size:.2g}, "
        f"which must be exactly 0; {ADVICE}"
    )


def _first_steps(candidate: Candidate) -> str:
    """The model as a run begins, for a design that reads the training step."""
    length = candidate.length(24)
    if length < 2:
        raise Doubtful("not checked: model.block_size is 1")
    model = candidate.model()
    for step in FIRST_STEPS:
        with at_step(model, step):
            at = (0, length // 2 - 1)
            _compare_tokens(model, candidate, 2, length, at, True, f" at training step {step}")
    steps = ", ".join(map(str, FIRST_STEPS))
    return f"exact at training steps {steps} too; the other checks are made at step {STEADY_STEP:,}"
