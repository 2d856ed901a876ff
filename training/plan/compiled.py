"""What compiled code keeps and holds, from torch.compile's own graphs, without compiling them.

Dynamo, AOTAutograd and its partitioner, which decides what is kept for backward within
`train.activation_memory_budget`, run as they do in training. Only inductor's code is left out.
"""

import functools
import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import torch
import torch._inductor.compile_fx as inductor
from torch import fx
from torch._functorch import config as functorch
from torch._functorch.partitioners import get_default_op_list
from torch._inductor import inductor_prims
from torch.utils._pytree import tree_iter

_aten = torch.ops.aten
_ALSO_FUSED = (
    _aten.cat,
    _aten.embedding,
    *(op.overloadpacket for op in (inductor_prims.seeds, inductor_prims.lookup_seed, inductor_prims.random)),
)
Run = Callable[[fx.GraphModule, list[Any], bool], Any]


@contextmanager
def graphs_run_by(run: Run, budget: float) -> Iterator[None]:
    """What torch.compile takes while this is entered is run by `run` in place of compiled code.

    Args:
        run: gets a graph, its inputs in a list that it empties, and whether it is a backward; gives the
            graph's outputs.
        budget: see `train.activation_memory_budget`.
    """

    def compile_nothing(
        graph: fx.GraphModule, *_: Any, is_backward: bool = False, **__: Any
    ) -> Callable[[list[Any]], Any]:
        def boxed(inputs: list[Any]) -> Any:
            return run(graph, inputs, is_backward)

        boxed._boxed_call = True  # type: ignore[attr-defined]
        return boxed

    compile_fx = inductor.compile_fx

    def up_to_the_code(model: Any, inputs: Any, **_: Any) -> Any:
        return compile_fx(model, inputs, inner_compile=cast(Any, compile_nothing))

    torch._dynamo.reset()  # what is compiled already would run as it is
    with (
        mock.patch.object(inductor, "compile_fx", up_to_the_code),
        functorch.patch(enable_autograd_cache=False, activation_memory_budget=budget),
    ):
        try:
            yield
        finally:
            torch._dynamo.reset()


def bytes_at_peak(graph: fx.GraphModule, freed: Sequence[torch.UntypedStorage | None]) -> int:
    """Bytes that compiled code holds at most over what there was before it, its outputs included.

    Inductor computes pointwise operations where they are read: what lies in memory is what its other kernels
    read and write, what is reduced, and what is returned. An input goes when it was read for the last time.

    Args:
        graph: as AOTAutograd gives it to inductor.
        freed: the memory of each input, None where it stays.
    """
    nodes = list(graph.graph.nodes)
    inputs, output = [node for node in nodes if node.op == "placeholder"], nodes[-1]
    sizes: dict[fx.Node, int] = {}  # of what lies in memory
    reads: dict[fx.Node, set[fx.Node]] = {}  # what lies in memory and a node is computed from
    first: dict[int, fx.Node] = {}  # several inputs may be parts of one memory
    for node, storage in zip(inputs, freed, strict=True):
        of_node = node if storage is None else first.setdefault(storage._cdata, node)
        reads[node] = {of_node}
        sizes[node] = storage.nbytes() if storage is not None and of_node is node else 0
    last_read: dict[fx.Node, fx.Node] = {}
    for node in nodes[len(inputs) :]:
        sources: set[fx.Node] = set()
        sources = sources.union(*(reads[source] for source in node.all_input_nodes))
        lies = not _is_view(node) and (not _is_fused(node) or _is_written(node))
        if lies:
            sizes[node] = _bytes(node)
            last_read |= dict.fromkeys(sources, node)
        reads[node] = {node} if lies else sources
    stays = {output}.union(*(reads[node] for node in output.all_input_nodes))
    stays |= {node for node, storage in zip(inputs, freed, strict=True) if storage is None}
    goes: dict[fx.Node, list[int]] = {}
    for node, reader in last_read.items():
        if node not in stays:
            goes.setdefault(reader, []).append(sizes[node])
    now = peak = 0
    for node in (node for node in nodes[len(inputs) :] if node in sizes):
        gone = goes.get(node, [])
        # Pointwise code writes over an input of the same size that nobody reads after it.
        written_over = sizes[node] if _is_fused(node) and sizes[node] in gone else 0
        peak = max(peak, now + sizes[node] - written_over)
        now += sizes[node] - sum(gone)
    return peak


def _bytes(node: fx.Node) -> int:
    """Of a tensor, as it lies in memory; of several at once nothing, because each has a node of its own."""
    value = node.meta.get("val")
    return value.untyped_storage().nbytes() if isinstance(value, torch.Tensor) else 0


def _is_view(node: fx.Node) -> bool:
    """Whether a node is a part of another one's memory."""
    if node.target is operator.getitem:
        return _is_view(node.all_input_nodes[0])
    return getattr(node.target, "is_view", False) or node.target is _aten._unsafe_view.default


def _is_fused(node: fx.Node) -> bool:
    """Whether inductor computes a node in loops of its own, as opposed to a library's kernel."""
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    packet = getattr(node.target, "overloadpacket", node.target)
    return packet in _ALSO_FUSED or packet in _fusible()


@functools.cache
def _fusible() -> Collection[Any]:
    return get_default_op_list().fusible_ops


def _is_written(node: fx.Node) -> bool:
    """Whether what could be computed where it is read is written to memory all the same."""
    return node.target is _aten.cat.default or _is_reduced(node) or _is_read_by_kernels(node)


def _is_read_by_kernels(node: fx.Node) -> bool:
    return any(_is_read_by_kernels(user) if _is_view(user) else not _is_fused(user) for user in node.users)


def _is_reduced(node: fx.Node) -> bool:
    return _numel(node) < max((_numel(source) for source in node.all_input_nodes), default=0)


def _numel(node: fx.Node) -> int:
    return max((x.numel() for x in tree_iter(node.meta.get("val")) if isinstance(x, torch.Tensor)), default=0)
