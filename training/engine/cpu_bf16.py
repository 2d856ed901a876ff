"""bf16 products on CPUs without bf16 instructions: computed in fp32 and rounded.

That is what bf16 hardware does too: exact products, sums in fp32, one rounding. torch's own bf16 kernels are
3 to 100 times slower than this on such a CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_aten = torch.ops.aten
_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu
PRODUCTS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _ATTENTION.default,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    }
)


@contextmanager
def bf16_arithmetic() -> Iterator[None]:
    """What bf16 steps run under on this hardware: nothing special, but on CPUs without bf16 instructions."""
    if torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        yield
        return
    from torch._inductor import config as inductor

    from .cpu_bf16_graphs import ProductsInFP32  # not above: importing inductor takes most of a second

    with MultiplyBF16InFP32(), inductor.patch(post_grad_custom_pre_pass=ProductsInFP32()):
        yield


class MultiplyBF16InFP32(TorchDispatchMode):
    """Matrix products and attention on bf16 tensors, computed in fp32 and rounded to bf16."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave compiled graphs alone: `ProductsInFP32` does the same there."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return result.bfloat16()
        if func is _ATTENTION.default:
            output, log_sum_exp = result
            return output.bfloat16(), log_sum_exp  # bf16 attention keeps its log-sum-exp in fp32
        return tuple(gradient.bfloat16() for gradient in result)
