"""Linear layers in fp32 on a CPU by oneDNN's kernels, which are faster than those that torch chooses."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class FasterLinear(TorchFunctionMode):
    """While it is entered, `F.linear` without gradients, in fp32 on an x86 CPU, is oneDNN's.

    torch gives fp32 products to MKL. With GPT-2 small's layers oneDNN is 2.2 times as fast on an AMD EPYC
    with AVX-512, and 1.1 times with AVX2 alone (one thread, torch 2.13). Both add in fp32: results differ by
    rounding, and do not depend on which of two machines of a kind, or which start, has them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.linear or kwargs or not _applies(*args):
            return func(*args, **(kwargs or {}))
        x, weight, *bias = args
        return torch.ops.mkldnn._linear_pointwise(x, weight, *(bias or [None]), "none", [], "")


def _applies(*tensors: torch.Tensor | None) -> bool:
    """Whether oneDNN's kernel is there and takes an input, a weight and perhaps a bias."""
    given = [x for x in tensors if x is not None]
    return (
        torch.backends.mkl.is_available()  # what torch would choose
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() for x in given[1:])
        and given[0].dtype == torch.float32
        and given[0].device.type == "cpu"
        and given[0].dim() > 1
        and given[0].numel() > 0
    )
