"""Where a value that is not finite arises: the last batch once more, with an eye on every module."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from data import document_ids, inputs_and_targets

from .policy import Verdict

ITSELF = "the model itself"
"""The name of what has none."""


class Found(NamedTuple):
    """What a rank has found.

    Attributes:
        order: the lowest of what one look found was wrong first.
        layer: the name of the module or parameter.
        what: of it is not finite, in words.
    """

    order: int
    layer: str
    what: str


def locate(
    engine: Any,
    batch: Sequence[Any],
    device: torch.device,
    eot: int,
    document_mask: bool,
    verdict: Verdict,
    fail: Callable[[str], None],
) -> Verdict:
    """The verdict with the layer and the rank of the first value that is not finite, added to its sentence.

    All ranks call it, and it uses up the engine: gradients of the batch are left in it. Where it finds
    nothing, or fails, the sentence says so. It runs the blocks uncompiled, on the weights as they are.

    Args:
        engine: DeepSpeed's.
        batch: this rank's micro-batches, (tokens (B, T + 1), cursors) each.
        device: this rank's.
        eot: the token that ends a document.
        document_mask: whether attention stays within a document.
        verdict: on a run that diverged.
        fail: is told why this rank cannot look, before it waits for the others: see `together`.
    """
    if not verdict.not_finite:
        return verdict
    parts = []
    for tokens, _ in batch:
        inputs, targets = inputs_and_targets(tokens.to(device).long(), eot)
        parts.append((inputs, targets, document_ids(inputs, eot) if document_mask else None))
    problem = None
    for look in (_in_weights, _in_forward, _in_backward):
        found = None
        try:
            found = look(engine, parts)
        except Exception as error:  # the run has ended: why is still worth a sentence
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if look is _in_backward or engine.zero_optimization_partition_weights():  # others may wait in it
                fail(problem)
        of_ranks: list[tuple[Found | None, str | None]] = [(None, None)] * dist.get_world_size()
        dist.all_gather_object(of_ranks, (found, problem))
        known = [(one.order, rank, one) for rank, (one, _) in enumerate(of_ranks) if one is not None]
        if known:
            _, rank, first = min(known)
            sentence = f"{verdict.sentence}; {first.what} first in {first.layer}, on rank {rank}"
            return verdict._replace(layer=first.layer, rank=rank, sentence=sentence)
        if problems := [said for _, said in of_ranks if said]:
            return unknown(verdict, problems[0])
    return verdict._replace(sentence=f"{verdict.sentence}; the same batch once more gave finite values")


def unknown(verdict: Verdict, why: str) -> Verdict:
    """The verdict whose sentence says that the layer could not be found out."""
    return verdict._replace(sentence=f"{verdict.sentence}; where could not be found out ({why})")


def all_finite(engine: Any) -> bool:
    """Whether this rank's weights are, its part of them where they are split."""
    return _in_weights(engine, ()) is None


def _in_weights(engine: Any, parts: Sequence[Any]) -> Found | None:
    for order, (name, parameter) in enumerate(engine.module.named_parameters()):
        own = getattr(parameter, "ds_tensor", parameter)
        if not torch.isfinite(own.detach()).all():
            return Found(order, name, "weights are not finite before the batch,")
    return None


def _in_forward(engine: Any, parts: Sequence[Any]) -> Found | None:
    found: list[Found] = []
    with _plainly(), torch.no_grad(), _watched(engine.module, found):
        for inputs, targets, documents in parts:
            _, loss = engine(inputs, targets, documents=documents)
            if not torch.isfinite(loss) and not found:
                found.append(Found(len(found), "the loss", "values are not finite"))
    return found[0] if found else None


def _in_backward(engine: Any, parts: Sequence[Any]) -> Found | None:
    found: list[Found] = []
    handles = []
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:

            def look(gradient: torch.Tensor, name: str = name) -> None:
                if not found and not torch.isfinite(gradient).all():
                    found.append(Found(0, name, "gradients are not finite"))

            handles.append(parameter.register_hook(look))
    try:
        with _plainly():
            for inputs, targets, documents in parts:
                _, loss = engine(inputs, targets, documents=documents)
                engine.backward(loss)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


@contextmanager
def _plainly() -> Iterator[None]:
    """Compiled code runs as it is written inside, so that hooks see every module."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _watched(gpt: nn.Module, found: list[Found]) -> Iterator[None]:
    """`found` gets the first module whose output is not finite, though what it was given is.

    Where a module is given such a value, the code of the one around it has made it, between its parts.
    """
    inside: list[str] = []

    def note(name: str, values: Any) -> None:
        if not found and any(not torch.isfinite(x).all() for x in _floats(values)):
            found.append(Found(0, name or ITSELF, "values are not finite"))

    with ExitStack() as stack:
        for name, module in gpt.named_modules():

            def before(m: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                note(inside[-1] if inside else ITSELF, (args, kwargs))
                inside.append(name)

            def after(m: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                inside.pop()
                note(name, output)

            for handle in (
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(after, with_kwargs=True),
            ):
                stack.callback(handle.remove)
        yield


def _floats(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        if values.is_floating_point() or values.is_complex():
            yield values.detach()
    elif isinstance(values, dict):
        yield from _floats(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _floats(value)
