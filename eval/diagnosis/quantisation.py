"""What a model loses where linear layers multiply numbers of 8 bits: W8A8, simulated."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

Scales = Literal["per_tensor", "per_token"]
ALL_SCALES: tuple[Scales, ...] = get_args(Scales)
LEVELS = 127
"""The largest of the signed integers; the smallest is -127."""


class FakeQuantised(TorchFunctionMode):
    """Within it each linear layer reads inputs and weights rounded to 8 bits, whatever module it is part of.

    The inputs of one product have one scale, or one for each token; weights always have one, so that the two
    differ by what the tokens' own scales are worth.

    Source: Dettmers et al. 2022, arXiv:2208.07339; Bondarenko et al. 2023, arXiv:2306.12929.

    Attributes:
        products: how many linear layers have been computed so.
    """

    def __init__(self, scales: Scales) -> None:
        super().__init__()
        self.scales = scales
        self.products = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Any function of torch as it is, `linear` with other inputs and weights."""
        kwargs = kwargs or {}
        if func is not F.linear:
            return func(*args, **kwargs)
        given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
        self.products += 1
        inputs = rounded(given["input"], by_row=self.scales == "per_token")
        return func(inputs, rounded(given["weight"], by_row=False), given.get("bias"))


def rounded(x: torch.Tensor, *, by_row: bool) -> torch.Tensor:
    """x as integers up to LEVELS times a scale, which its largest magnitude sets: (..., C).

    All of x has one scale, or each row along C.
    """
    largest = x.abs().amax(dim=-1, keepdim=True) if by_row else x.abs().amax()
    scale = torch.where(largest > 0, largest, 1) / LEVELS
    return (x / scale).round() * scale
