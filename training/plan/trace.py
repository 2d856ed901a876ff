"""What forward and backward hold at their peak, from running them on tensors that have shapes only."""

import contextlib
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from model import GPT, GPTConfig
from model.loss import CHUNK, CHUNK_IN_PLACE, _MeanLoss, dtype_of_products, even_chunk

from ..engine.compilation import checkpoint_blocks, compile_blocks
from ..engine.cpu_bf16 import bf16_arithmetic
from .compiled import bytes_at_peak, graphs_run_by

Device = Literal["cuda", "cpu"]
Gradients = Literal["kept", "new", "freed"]
"""Whether a parameter's gradient is there before backward, is made by it, or is moved away at once."""


@dataclass(frozen=True)
class Activations:
    """Bytes beside weights and the gradients that were there before, at the peak of forward and backward."""

    forward: int
    backward: int


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is entered.

    Attributes:
        now: of those that are alive.
        peak: the most that were alive at once.

    Args:
        hidden: bytes that torch's chunked loss takes inside its own kernel, where no tensor shows: a chunk of
            logits in fp32.
    """

    def __init__(self, hidden: int = 0) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._hidden = hidden
        self._in_graph = False
        self._sizes: dict[int, int] = {}

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave compiled graphs to `run`."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._in_graph:
            return result
        self._count(result, _storages((args, kwargs)))
        self.peak = max(self.peak, self.now + (self._hidden if "linear_cross_entropy" in str(func) else 0))
        return result

    def run(self, graph: torch.fx.GraphModule, inputs: list[Any], is_backward: bool) -> Any:
        """The outputs of a graph that is compiled in training: the tensors in between are inductor's."""
        places = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
        named = zip(inputs, places, strict=True)
        freed = [self._freed(x, name) if is_backward else None for x, name in named]
        given = list(inputs)
        inputs.clear()
        self.peak = max(self.peak, self.now + bytes_at_peak(graph, freed))
        self._in_graph = True
        result = graph(*given)
        self._in_graph = False
        self._count(result, _storages(given))
        return result

    def _freed(self, x: Any, name: str) -> torch.UntypedStorage | None:
        """The memory of a backward input if it goes once it is read: weights stay, and what autograd has."""
        if not isinstance(x, torch.Tensor) or name.startswith("tangents"):
            return None
        storage = x.untyped_storage()
        return storage if storage._cdata in self._sizes else None

    def _count(self, result: Any, given: Mapping[int, torch.UntypedStorage]) -> None:
        for key, storage in _storages(result).items():
            if key not in given and key not in self._sizes:  # views share their storage
                self._sizes[key] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _storages(tree: Any) -> dict[int, torch.UntypedStorage]:
    found = (leaf.untyped_storage() for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))
    return {storage._cdata: storage for storage in found}


class HeadWithoutNumbers(torch.autograd.Function):
    """The tensors of `model.loss._MeanLoss` alone; what is compiled there makes none in between.

    Args:
        hidden: what the head reads, in the dtype of its products.
        rows: the head's weight, in the same.
        most_rows: rows of logits that exist at once, at most.
        rounds: whether a product is rounded to the inputs' dtype before it is summed in fp32, as on CPUs.
        keeps_capped: whether softcapped logits are kept in fp32, because a CPU's compiler computes no tanh
            twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        rows: torch.Tensor,
        most_rows: int,
        rounds: bool,
        keeps_capped: bool = False,
    ) -> torch.Tensor:
        chunk = even_chunk(len(hidden), most_rows)
        grad_hidden = torch.empty_like(hidden)
        logits = hidden.new_empty(chunk, len(rows))
        capped = torch.empty_like(logits, dtype=torch.float32) if keeps_capped else None
        del capped
        alone = chunk >= len(hidden)  # then it is the sum, and has the inputs' dtype
        grad_rows = torch.empty_like(rows, dtype=rows.dtype if alone else torch.float32)
        in_place = (
            not rounds and rows.dtype != torch.float32
        )  # a GPU adds a bf16 product to the sum as it makes it
        product = None if alone or in_place else torch.empty_like(rows)
        del logits, product
        ctx.save_for_backward(grad_hidden, grad_rows)
        ctx.dtype = rows.dtype
        return hidden.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_hidden, of_rows = (torch.empty_like(of, dtype=ctx.dtype) for of in ctx.saved_tensors)
        return of_hidden, of_rows, None, None, None


def trace(
    config: GPTConfig,
    micro_batch: int,
    mode: str,
    gradients: Gradients,
    checkpointing: Mapping[str, Any] | None,
    device: Device,
    compiled: bool = False,
    budget: float = 1.0,
    document_mask: bool = False,
) -> Activations:
    """Forward and backward of (micro_batch, block_size) tokens on tensors without memory.

    Args:
        config: the model.
        micro_batch: sequences.
        mode: see `DeepSpeedConfig.precision`.
        gradients: what becomes of the parameters' gradients.
        checkpointing: the JSON's section: with it, blocks keep their inputs and run again in backward.
        device: see `MemoryModel`.
        compiled: whether the blocks are.
        budget: see `train.activation_memory_budget`.
        document_mask: whether attention keeps to documents.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mode, torch.float32)
    half = torch.float16 if mode.endswith("fp16") else torch.bfloat16
    autocast: AbstractContextManager[Any] = (
        torch.autocast("cpu", dtype=half) if mode.startswith("autocast") else nullcontext()
    )
    live = Live(4 * config.vocab_size * min(CHUNK["cpu"], micro_batch * config.block_size))
    with contextlib.ExitStack() as stack:
        stack.enter_context(graphs_run_by(live.run, budget))
        stack.enter_context(FakeTensorMode())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(dtype)
        gpt = GPT(config).train()
        torch.set_default_dtype(torch.float32)
        if compiled:
            compile_blocks(gpt, lambda sentence: None, budget=budget)
        if checkpointing is not None:
            checkpoint_blocks(gpt, on_cpu=False)
        for parameter in gpt.parameters():
            if gradients == "kept":
                parameter.grad = torch.empty_like(parameter)
            if gradients == "freed":
                parameter.register_post_accumulate_grad_hook(_free_gradient)
        idx = torch.zeros(micro_batch, config.block_size, dtype=torch.int64)
        # On a GPU the mask is FlexAttention's, which holds tiles and no elements, unless there is dropout.
        documents = idx if document_mask and (device == "cpu" or config.dropout > 0) else None
        stack.enter_context(live)
        if device == "cpu":
            stack.enter_context(bf16_arithmetic())
        with autocast:
            loss = _loss(gpt, idx, documents, device)
        forward = live.peak
        live.peak = live.now
        loss.backward()
        backward = live.peak
    if checkpointing and checkpointing.get("cpu_checkpointing"):
        # The inputs of all blocks but the one that runs wait in the CPU's memory.
        inputs = (len(gpt.repeated_methods()) - 1) * idx.numel() * config.n_embd * dtype.itemsize
        forward, backward = forward - inputs, backward - inputs
    return Activations(forward, backward)


def _loss(gpt: GPT, idx: torch.Tensor, documents: torch.Tensor | None, device: Device) -> torch.Tensor:
    """The loss as `model.loss` computes it on the device, chunked there or by torch's own operator."""
    hidden = gpt.hidden(idx, documents)
    if device == "cpu":
        products = dtype_of_products(hidden)
    else:
        products = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
    if device == "cpu" and products == torch.float32:
        return gpt.lm_head(hidden, idx)
    with torch.autocast("cpu", enabled=False):
        hidden, rows = hidden.flatten(0, -2).to(products), gpt.lm_head.rows().to(products)
        head = gpt.lm_head
        if products == torch.float32 and (head.z_loss or head.softcap):  # not torch's own operator
            return _MeanLoss.apply(
                hidden, rows, idx.flatten(), CHUNK_IN_PLACE[device], head.z_loss, head.softcap
            )
        rounds = device == "cpu" and products != torch.float32
        return HeadWithoutNumbers.apply(
            hidden, rows, CHUNK_IN_PLACE[device], rounds, rounds and head.softcap > 0
        )


def _free_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None
