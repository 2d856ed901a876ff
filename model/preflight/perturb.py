"""Changes after a cut, what of the output they reached, and whether that is more than rounding.

A design that gathers rows before a product, as a mixture of experts does, sums the same numbers in another
order when other rows are there: its outputs differ by some 1e-16 though nothing was read. So a difference of
less than `ROUNDING` units in the last place is looked for again with `RowProducts`, in which each row of a
product is summed in an order of its own. What is still there is refused; what is gone was rounding. A planted
leak is no sum in another order, and stays, whatever its coefficient. One that hides from whoever looks on is
gone already when products are looked at and left as they are, which rounding is not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .candidate import SEED, Candidate, largest, same
from .report import Doubtful, Rounding

WINDOW = 66
"""A little more than 64 tokens: a leak may live inside a window of that size."""
SHORT = 34
ROUNDING = {torch.float64: 2.0**16, torch.float32: 2.0**12, torch.bfloat16: 2.0**6}
"""A larger difference, in units in the last place of the outputs' largest number, is none of rounding."""
ADVICE = "a position may read itself and earlier ones only"


def cuts(candidate: Candidate, length: int) -> list[int]:
    """Positions after which the input is changed: all of a short sequence, or the likely ones."""
    if length <= (SHORT if candidate.thorough else 12):
        return list(range(length - 1))
    drawn = torch.randint(length - 1, (3,), generator=torch.Generator().manual_seed(length)).tolist()
    usual = {0, 1, 15, 16, 31, 46, 47, 63, length // 2, length - 3, length - 2, *drawn}
    return sorted(cut for cut in usual if 0 <= cut < length - 1)


def tail_mask(at: Sequence[int], length: int) -> torch.Tensor:
    """(len(at), length), true after the cut of each row."""
    return torch.arange(length) > torch.tensor(at)[:, None]


def changed_streams(x: torch.Tensor, tail: torch.Tensor, way: int) -> torch.Tensor:
    """x (B, T, C) with other values where `tail` (B, T) is true: large noise, or the sign and size turned."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED + way), dtype=torch.float64).to(
        x
    )
    return torch.where(tail[..., None], 1e3 * noise if way == 0 else -1.7 * x, x)


@dataclass(frozen=True)
class Change:
    """A difference that must not be.

    Attributes:
        words: where it is and how large, as the beginning of a sentence.
        small: whether it may be one of rounding.
    """

    words: str
    small: bool


def change(words: str, before: torch.Tensor, after: torch.Tensor) -> Change | None:
    """The difference of two outputs, `words` with its size for `{}`; None where all bits are the same."""
    if same(before, after).all():
        return None
    size, scale = largest(before - after), largest(before)
    limit = ROUNDING.get(before.dtype, 0.0) * torch.finfo(before.dtype).eps * scale
    return Change(words.format(f"{size:.2g}"), size < limit)


def first_change(before: torch.Tensor, after: torch.Tensor, tail: torch.Tensor) -> Change | None:
    """Where (B, T, C) outputs differ outside `tail` (B, T), at first; None where they do not.

    Raises Doubtful where `before` says nothing because it is not finite.
    """
    wrong = ~same(before, after).flatten(2).all(-1) & ~tail
    if not wrong.any():
        if not before.isfinite().all():
            raise Doubtful("not checked: outputs at random weights are not finite")
        return None
    row, position = (int(i) for i in wrong.nonzero()[0])
    cut = int((~tail[row]).sum()) - 1
    where = f"the output at position {position} of {tail.shape[1]}"
    words = f"{where} changes by {{}} with tokens after position {cut}"
    first = change(words, before[row, position], after[row, position])
    whole = change("", before[~tail], after[~tail])
    assert first and whole
    return Change(first.words, first.small and whole.small)


def beyond_rounding(candidate: Candidate, find: Callable[[], Change | None]) -> str:
    """What `find` finds, in words, if it is more than rounding; empty where it is not.

    Rounding is noted in the candidate's numbers, for `with_rounding`.
    """
    found = find()
    if found is None or not found.small:
        return found.words if found else ""
    with RowProducts(exact=False):
        if find() is None:
            return f"{found.words} while nobody looks on"
    with RowProducts():
        again = find()
    if again:
        return again.words
    candidate.numbers.setdefault("rounding", []).append(found.words)
    return ""


def with_rounding(candidate: Candidate, check: Callable[[Candidate], str]) -> str:
    """The detail of a check. Raises Rounding where the check has found some."""
    known = len(candidate.numbers.get("rounding", ()))
    detail = check(candidate)
    if new := candidate.numbers.get("rounding", [])[known:]:
        raise Rounding(f"{detail}, but for rounding: {new[0]} only while sums run in another order")
    return detail


class RowProducts(TorchDispatchMode):
    """While it is entered, a row of a matrix product does not depend, not by one bit, on the other rows.

    Args:
        exact: False leaves products as they are.
    """

    def __init__(self, exact: bool = True) -> None:
        super().__init__()
        self.exact = exact

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # importing torch._dynamo would take longer than the check

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        aten = torch.ops.aten
        if not self.exact:
            return func(*args, **kwargs)
        if func in (aten.mm.default, aten.bmm.default):
            return _product(*args)
        if func in (aten.addmm.default, aten.baddbmm.default):
            added, a, b = args
            return kwargs.get("beta", 1) * added + kwargs.get("alpha", 1) * _product(a, b)
        return func(*args, **kwargs)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(..., m, k) x (..., k, n): in float64 one column of a after the other; else in float64, and rounded."""
    if a.device.type == "meta" or not a.is_floating_point():
        return a @ b
    if a.dtype != torch.float64:
        return (a.double() @ b.double()).to(a.dtype)
    total = a.new_zeros((*a.shape[:-1], b.shape[-1]))
    for k in range(a.shape[-1]):
        total = total + a[..., k : k + 1] * b[..., k : k + 1, :]
    return total
