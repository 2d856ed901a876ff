"""What passes through a model from layer to layer, seen by hooks on what repeats over its depth."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from model import GPT
from model.document_mask import dense_mask
from model.hyper_connections import StreamTopology
from model.layers import MLP, CausalSelfAttention
from model.topologies import is_residual

from .attention import WatchAttention
from .formulas import cosine, ratio

Place = tuple[int, str]
"""A layer, and a part of it."""
_NAMES_OF_BRANCHES = re.compile("attn|attention|mlp|ffn|feed_?forward", re.IGNORECASE)


class Observation:
    """What one forward pass of a model showed. What a design has not, or has twice, is absent.

    Attributes:
        stream: by layer, h_l: the (B, T, C) that enters block l, or its mean where a topology keeps several;
            under the number of layers what the final norm reads.
        origin: by layer, the tensor of the graph that h_l is: (B, T, C), or the streams (B, T, n, C).
        branches: by place, |F| / |h| and their cosine. F is what a residual branch adds to h; where a block
            does not say, what its attention or MLP returns, beside the h that enters the block. The part ""
            is the block as a whole: what it returns less what it is given.
        attention: by place, the statistics of its softmax.
    """

    def __init__(self, n_layer: int) -> None:
        self.n_layer = n_layer
        self._streams: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._branches: dict[Place, list[dict[str, float]]] = {}
        self._attention: dict[Place, list[Mapping[str, float] | None]] = {}
        self._place: list[Place] = []
        self._inputs: dict[int, torch.Tensor] = {}

    @property
    def stream(self) -> dict[int, torch.Tensor]:
        return {layer: h for layer, (h, _) in _once(self._streams).items()}

    @property
    def origin(self) -> dict[int, torch.Tensor]:
        return {layer: origin for layer, (_, origin) in _once(self._streams).items()}

    @property
    def branches(self) -> dict[Place, dict[str, float]]:
        return _once(self._branches)

    @property
    def attention(self) -> dict[Place, Mapping[str, float]]:
        return {place: found for place, found in _once(self._attention).items() if found is not None}

    def enters(self, layer: int, x: Any) -> None:
        """x (B, T, C), or streams (B, T, n, C), enter block `layer`."""
        if isinstance(x, torch.Tensor) and x.dim() in (3, 4):
            # A copy, because a design may change it in place.
            h = x.detach().clone() if x.dim() == 3 else x.detach().mean(dim=2)
            self._streams.setdefault(layer, []).append((h, x))

    def returns(self, place: Place, stream: Any, branch: Any) -> None:
        """A branch (B, T, C) beside its stream (B, T, C)."""
        if all(isinstance(x, torch.Tensor) and x.dim() == 3 for x in (stream, branch)):
            stream, branch = stream.detach(), branch.detach()
            if stream.shape == branch.shape:
                found = {"branch_ratio": ratio(branch, stream), "branch_cos": cosine(branch, stream)}
                self._branches.setdefault(place, []).append(found)

    def attends(self, statistics: Mapping[str, float] | None) -> None:
        """A softmax was computed at the present place."""
        if self._place:
            self._attention.setdefault(self._place[-1], []).append(statistics)

    def begin(self, place: Place, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A block or a child of one is called."""
        self._place.append(place)

    def end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """It has returned."""
        self._place.pop()


@contextmanager
def observe(gpt: GPT, documents: torch.Tensor | None = None) -> Iterator[Observation]:
    """Record one forward pass of the model, which is made inside, without documents of its own.

    Afterwards the model is as before, also where the pass raised.

    Args:
        gpt: of any design, uncompiled.
        documents: (B, T) the number of each token's document; attention stays within it.
    """
    seen = Observation(len(gpt.blocks))
    with ExitStack() as stack:
        if documents is not None:
            stack.enter_context(_documents_apart(gpt, dense_mask(documents)))
        topology = gpt.transformer["topology"]
        apart = _connections(topology, gpt.blocks) if isinstance(topology, StreamTopology) else {}
        for layer, connection in apart.items():
            stack.enter_context(
                _hooked(connection, before=lambda m, a, k, layer=layer: seen.enters(layer, _first(a, k)))
            )
        for layer, block in enumerate(gpt.blocks):
            _watch_block(stack, seen, layer, block, sees_stream=not apart)
        stack.enter_context(
            _hooked(topology, after=lambda m, a, k, output: seen.enters(seen.n_layer, output))
        )
        stack.enter_context(WatchAttention(seen.attends))
        yield seen


def _watch_block(
    stack: ExitStack, seen: Observation, layer: int, block: nn.Module, sees_stream: bool
) -> None:
    whole = (layer, "")
    inside: list[torch.Tensor] = []  # the stream that entered the call of the block under way

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.begin(whole, module, args, kwargs)
        x = _first(args, kwargs)
        inside.append(x)
        if sees_stream:
            seen.enters(layer, x)

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.end(module, args, kwargs, output)
        x = inside.pop()
        if isinstance(output, torch.Tensor) and isinstance(x, torch.Tensor) and output.shape == x.shape:
            seen.returns(whole, x, output.detach() - x.detach())

    stack.enter_context(_hooked(block, before, after))
    residual = is_residual(block)
    for name, child in block.named_children():
        place = (layer, name)

        def returned(m: nn.Module, a: Any, k: Any, output: Any, place: Place = place) -> None:
            if inside:
                seen.returns(place, inside[-1], output)

        stack.enter_context(_hooked(child, lambda m, a, k, place=place: seen.begin(place, m, a, k), seen.end))
        if not residual and _is_branch(name, child):
            stack.enter_context(_hooked(child, after=returned))
    for method, part in (("attention_branch", "attn"), ("mlp_branch", "mlp")) if residual else ():
        branch = getattr(block, method)

        def watched(x: torch.Tensor, branch: Any = branch, place: Place = (layer, part)) -> torch.Tensor:
            if sees_stream and not inside and place[1] == "attn":
                seen.enters(layer, x)  # a topology over branches calls no block as a whole
            output = branch(x)
            seen.returns(place, x, output)
            return output

        stack.enter_context(_replaced(block, method, watched))


def _is_branch(name: str, child: nn.Module) -> bool:
    return isinstance(child, CausalSelfAttention | MLP) or bool(_NAMES_OF_BRANCHES.search(name))


def _connections(topology: StreamTopology, blocks: list[nn.Module]) -> dict[int, nn.Module]:
    """By layer, the connection through which all streams enter the block's first branch."""
    found, index = {}, 0
    for layer, block in enumerate(blocks):
        found[layer] = topology.connections[index]
        index += 2 if is_residual(block) else 1
    return found


@contextmanager
def _documents_apart(gpt: GPT, mask: torch.Tensor) -> Iterator[None]:
    """`GPT.hidden` itself would choose, on a GPU, an attention whose scores cannot be looked at."""
    attentions = [module for module in gpt.modules() if isinstance(module, CausalSelfAttention)]

    def set_mask(module: nn.Module, args: Any, kwargs: Any) -> None:
        for attention in attentions:
            attention.document_mask = mask

    with _hooked(gpt.transformer["drop"], before=set_mask):
        try:
            yield
        finally:
            for attention in attentions:
                attention.document_mask = None


@contextmanager
def _hooked(
    module: nn.Module, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None
) -> Iterator[None]:
    handles = []
    try:
        if before:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        if after:
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replaced(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """An attribute of this one module, which has the class's again afterwards, or its own."""
    own = vars(module).get(name)
    setattr(module, name, method)
    try:
        yield
    finally:
        delattr(module, name)
        if own is not None:
            setattr(module, name, own)


def _first(args: Any, kwargs: Any) -> Any:
    return next(iter((*args, *kwargs.values())), None)


def _once(found: Mapping[Any, list[Any]]) -> dict[Any, Any]:
    """What came once; what came more often has no one value."""
    return {key: values[0] for key, values in found.items() if len(values) == 1}
