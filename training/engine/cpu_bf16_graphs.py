"""`cpu_bf16` for compiled graphs: the same products in fp32, whose conversions inductor fuses."""

import operator
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from . import cpu_bf16
from .cpu_bf16 import PRODUCTS


class ProductsInFP32(CustomGraphPass):
    """What `MultiplyBF16InFP32` does, for a graph that inductor compiles."""

    def uuid(self) -> Any:
        """What compiled code is cached under, beside the graph."""
        return get_hash_for_files((__file__, cpu_bf16.__file__))

    def __call__(self, graph: torch.fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target in PRODUCTS and _is_bf16(node.args[0]):
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
