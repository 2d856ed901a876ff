"""What the loss costs where a layer, one of its branches, or the order of two neighbours is taken away.

Source: Sun et al. 2025, arXiv:2502.05795 (layers left out); Lad et al. 2024, arXiv:2406.19384 (swapped).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from model import GPT
from model.topologies import is_residual

METHODS = {"attn": "attention_branch", "mlp": "mlp_branch"}
"""The branches of a block x + F1, x + F2."""


class Change(NamedTuple):
    """A function in the place of a module's method."""

    module: nn.Module
    method: str
    function: Callable[..., Any]


class NotMeasurable(Exception):
    """A design that does not do what a measure takes for granted; its text says what, as a sentence's end."""


class _Counted:
    """Counts the calls of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(*args, **kwargs)


def changed(changes: Sequence[Change], measure: Callable[[], float]) -> float:
    """What `measure` returns while the methods are replaced.

    Raises NotMeasurable where one of them was not called, the design fails without it, or the value is not
    finite.
    """
    counted = [_Counted(change.function) for change in changes]
    both = zip(changes, counted, strict=True)
    with replaced([change._replace(function=function) for change, function in both]):
        try:
            value = measure()
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # of the design's own code, which may need what was taken away
            said = str(error).partition("\n")[0]
            raise NotMeasurable(f"the design fails then ({type(error).__name__}: {said})") from error
    if not all(function.calls for function in counted):
        raise NotMeasurable("the topology does not call it in a way that is known here")
    if not torch.tensor(value).isfinite():
        raise NotMeasurable("the loss is not finite then")
    return value


@contextmanager
def replaced(changes: Sequence[Change]) -> Iterator[None]:
    """The functions in the methods' places, and the methods back at the end."""
    before = [vars(module).get(method) for module, method, _ in changes]
    for module, method, function in changes:
        setattr(module, method, function)
    try:
        yield
    finally:
        for (module, method, _), own in zip(changes, before, strict=True):
            if own is None:
                delattr(module, method)
            else:
                setattr(module, method, own)


def without_layer(gpt: GPT, layer: int, idx: torch.Tensor) -> list[Change]:
    """Block `layer` as the identity: its forward, or its two branches as 0 where the topology joins those.

    A topology from elsewhere must hand the stream on as it was, which is tried on idx (B, T): with a block
    that returns its input, or with one that returns 0, where the topology adds the input itself.

    Raises NotMeasurable where it does neither.
    """
    methods = [(block, name) for block, name in gpt.repeated_methods() if block is gpt.blocks[layer]]
    if [name for _, name in methods] != ["forward"]:
        return [Change(block, name, nothing) for block, name in methods]
    block = gpt.blocks[layer]
    if type(gpt.transformer["topology"]).__module__.partition(".")[0] == "model":
        return [Change(block, "forward", same)]
    for function in (same, nothing):
        if _hands_on(gpt, layer, Change(block, "forward", function), idx):
            return [Change(block, "forward", function)]
    raise NotMeasurable("its topology joins blocks in a way that leaves open what a block without effect is")


def without_branch(gpt: GPT, layer: int, part: str) -> list[Change]:
    """A branch of block `layer` as 0: of a block x + F1, x + F2 that of METHODS.

    Of any other block it is the module of this name, and the norms behind it stay.
    """
    block = gpt.blocks[layer]
    if is_residual(block):
        return [Change(block, METHODS[part], nothing)]
    sublayer = block.get_submodule(part)
    forward = sublayer.forward

    def silent(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros_like(forward(*args, **kwargs))  # run, for what it leaves to other layers

    return [Change(sublayer, "forward", silent)]


def swapped(gpt: GPT, layer: int) -> list[Change]:
    """Blocks `layer` and `layer` + 1 in each other's place.

    Raises NotMeasurable where the topology calls them in different ways.
    """
    lower, upper = gpt.blocks[layer], gpt.blocks[layer + 1]
    by_block = [[name for block, name in gpt.repeated_methods() if block is each] for each in (lower, upper)]
    if by_block[0] != by_block[1]:
        raise NotMeasurable("the topology does not call both in the same way")
    return [
        Change(to, name, getattr(of, name))
        for to, of in ((lower, upper), (upper, lower))
        for name in by_block[0]
    ]


def same(x: Any, *args: Any, **kwargs: Any) -> Any:
    """A block that changes nothing: what it is given."""
    return x


def nothing(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """A branch that adds nothing: zeros like what it reads, (B, T, C)."""
    return torch.zeros_like(x)


@torch.no_grad()
def _hands_on(gpt: GPT, layer: int, change: Change, idx: torch.Tensor) -> bool:
    """Whether with this change the next block, or what follows the last, reads what block `layer` read."""
    read: list[torch.Tensor] = []

    def reading(function: Callable[..., Any]) -> Callable[..., Any]:
        def read_first(x: Any, *args: Any, **kwargs: Any) -> Any:
            read.append(x)
            return function(x, *args, **kwargs)

        return read_first

    is_last = layer + 1 == len(gpt.blocks)
    following = gpt.transformer["ln_f"] if is_last else gpt.blocks[layer + 1]
    changes = [
        change._replace(function=reading(change.function)),
        Change(following, "forward", reading(following.forward)),
    ]

    def equal() -> float:
        gpt.hidden(idx)
        return float(len(read) == 2 and read[0].shape == read[1].shape and torch.equal(*read))

    return bool(changed(changes, equal))
