"""bf16 products on CPUs without bf16 instructions: computed in fp32 and rounded, uncompiled and compiled.

That is what bf16 hardware does too: exact products, sums in fp32, one rounding. torch's own bf16 kernels are
3 to 100 times slower than this on such a CPU.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._inductor import config as inductor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_aten = torch.ops.aten
_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu
_PRODUCTS = frozenset(
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
        if func not in _PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return result.bfloat16()
        if func is _ATTENTION.default:
            output, log_sum_exp = result
            return output.bfloat16(), log_sum_exp  # bf16 attention keeps its log-sum-exp in fp32
        return tuple(gradient.bfloat16() for gradient in result)


class ProductsInFP32(CustomGraphPass):
    """`MultiplyBF16InFP32` for a graph that inductor compiles, which fuses the conversions."""

    def uuid(self) -> Any:
        """What compiled code is cached under, beside the graph."""
        return get_hash_for_files((__file__,))

    def __call__(self, graph: torch.fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target in _PRODUCTS and _is_bf16(node.args[0]):
                with graph.inserting_before(node):
                    node.args = torch.fx.map_arg(node.args, lambda given: _widened(graph, given))
                    node.kwargs = torch.fx.map_arg(node.kwargs, lambda given: _widened(graph, given))
                if isinstance(node.meta["val"], torch.Tensor):
                    _narrowed(graph, node)
                    continue
                wide = [user for user in node.users if user.target is operator.getitem and _is_bf16(user)]
                node.meta["val"] = type(node.meta["val"])(_wide_value(value) for value in node.meta["val"])
                for user in wide:
                    _narrowed(graph, user)


def _is_bf16(node: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16


def _wide_value(value: Any) -> Any:
    is_bf16 = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_bf16 else value


def _converted(graph: torch.fx.Graph, node: torch.fx.Node, dtype: torch.dtype) -> torch.fx.Node:
    converted = graph.call_function(torch.ops.prims.convert_element_type.default, (node, dtype))
    converted.meta["val"] = node.meta["val"].to(dtype)
    return converted


def _widened(graph: torch.fx.Graph, node: torch.fx.Node) -> torch.fx.Node:
    return _converted(graph, node, torch.float32) if _is_bf16(node) else node


def _narrowed(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Let the users of a bf16 result, which is fp32 now, see it rounded."""
    node.meta["val"] = node.meta["val"].float()
    with graph.inserting_after(node):
        rounded = _converted(graph, node, torch.bfloat16)
    node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)
