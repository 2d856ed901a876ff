"""Both kinds of CPU on either: with instructions for bf16 products, and without."""

from typing import Any

import pytest
import torch


class _Answer:
    """An operator whose answer is given; whatever else is asked of it, it is the operator."""

    def __init__(self, operator: Any, answer: bool) -> None:
        self._operator = operator
        self._answer = answer

    def __call__(self) -> bool:
        return self._answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operator, name)


def pretend_bf16(has_bf16: bool, patch: pytest.MonkeyPatch) -> None:
    """Have NormLab and torch's compiler take this CPU for one with bf16 instructions, or one without.

    Where there are none, torch's own bf16 kernels are slow, but give the same tensors.
    """
    name = "_is_mkldnn_bf16_supported"
    patch.setattr(torch.ops.mkldnn, name, _Answer(getattr(torch.ops.mkldnn, name), has_bf16))
