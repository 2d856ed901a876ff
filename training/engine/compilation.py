"""Blocks wrapped in place before the engine is built: compiled once for all layers, run again in backward."""

import functools
import logging
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._functorch import config as functorch
from torch.utils import flop_counter
from torch.utils.checkpoint import CheckpointPolicy, checkpoint

from model import GPT

if TYPE_CHECKING:
    from ..config import DeepSpeedConfig

CACHE_DIR = Path(__file__).resolve().parents[2] / ".cache" / "inductor"
"""Compiled code, kept between runs where TORCHINDUCTOR_CACHE_DIR names no other folder."""

Method = Callable[..., Any]
_GRAPH_BREAKS = logging.getLogger("torch._dynamo.symbolic_convert.__graph_breaks")
_CONVERSIONS = logging.getLogger("torch._dynamo.convert_frame")


def wrap_blocks(
    gpt: GPT, compiled: bool, config: "DeepSpeedConfig", say: Callable[[str], None], budget: float = 1.0
) -> None:
    """Compile the blocks if that is wanted, and checkpoint their activations if the DeepSpeed JSON has that
    section, before an engine is built around the model. `say` is told what has no effect or breaks graphs.

    `budget` is `train.activation_memory_budget`.
    """
    if budget < 1 and (because := why_no_budget(compiled, config)):
        say(f"train.activation_memory_budget has no effect: {because}")
        budget = 1.0
    if compiled and (because := why_uncompiled(config)):
        say(f"train.compile has no effect: {because}")
    elif compiled:
        compile_blocks(gpt, say, (config.micro_batch, gpt.config.block_size), budget=budget)
    if (checkpointing := config.activation_checkpointing) is not None:
        checkpoint_blocks(gpt, on_cpu=checkpointing.get("cpu_checkpointing", False))


def why_uncompiled(config: "DeepSpeedConfig") -> str | None:
    """Why a DeepSpeed JSON leaves blocks uncompiled whatever `train.compile` says; None if it does not."""
    if config.stage == 3:
        return "ZeRO-3 gathers the weights of each layer between its operations"
    if config.counts_flops:
        return "flops_profiler counts the operations of uncompiled layers"
    return None


def why_no_budget(compiled: bool, config: "DeepSpeedConfig") -> str | None:
    """Why `train.activation_memory_budget` changes nothing; None if it does."""
    if not compiled:
        return "train.compile is false, and torch.compile alone follows it"
    if why_uncompiled(config):
        return "train.compile has none, and torch.compile alone follows it"
    if config.activation_checkpointing is not None:
        return "activation_checkpointing keeps the inputs of blocks alone, and runs them again"
    return None


def compile_blocks(
    gpt: GPT,
    warn: Callable[[str], None],
    validated_shape: tuple[int, int] | None = None,
    *,
    budget: float = 1.0,
) -> None:
    """Compile what repeats over depth, and the final norm: one graph serves all layers of a kind, a plug-in's
    code included.

    Evaluation, whose batches have other shapes, runs them as they are. What cannot be compiled, or not whole,
    still runs. The embedding is left alone: it is two passes, and compiled its gradient would be summed in
    whatever order threads come.

    Args:
        gpt: the model, before an engine is built around it.
        warn: is told in one sentence, with file and line, of each graph break and of what is not compiled.
        validated_shape: the (B, T) that are computed compiled without training, too.
        budget: see `train.activation_memory_budget`.
    """
    _keep_within(budget)
    if shlex.quote(str(CACHE_DIR)) == str(CACHE_DIR):  # inductor calls the C++ compiler without quotes
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE_DIR))
    torch._dynamo.config.suppress_errors = True
    # Fused, two equal bf16 sums (the biases of a parallel block's branches) get one name, which C++ refuses.
    torch._inductor.config.cpp.max_horizontal_fusion_size = 1
    # Layers that differ, as by a constant from their depth, each have a graph.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(gpt.blocks))
    handler = _Warnings(warn)
    for logger, level in ((_GRAPH_BREAKS, logging.DEBUG), (_CONVERSIONS, logging.WARNING)):
        logger.setLevel(level)
        for of_another_model in [known for known in logger.handlers if isinstance(known, _Warnings)]:
            logger.removeHandler(of_another_model)
        logger.addHandler(handler)
    gpt.compiled_shape = validated_shape
    final_norm = gpt.transformer["ln_f"], "forward"
    for module, name in (*gpt.repeated_methods(), *gpt.methods_between(), final_norm):
        method = getattr(module, name)
        _replace(module, name, _where_it_pays(gpt, module, torch.compile(method, dynamic=False), method))


def _keep_within(budget: float) -> None:
    """Have what is compiled from now on keep no more than this share of activations for backward."""
    if functorch.activation_memory_budget != budget:
        torch._dynamo.reset()  # code in memory is not found by its budget, as that on disk is
        functorch.activation_memory_budget = budget
    torch._inductor.config.joint_custom_post_pass = _seeds_kept() if budget < 1 else None
    # torch weighs what to compute again by its FLOPs, and knows those of attention on GPUs alone.
    aten, formulas = torch.ops.aten, flop_counter.flop_registry
    of_gpus = formulas[aten._scaled_dot_product_flash_attention]
    formulas.setdefault(aten._scaled_dot_product_flash_attention_for_cpu, of_gpus)


def _seeds_kept() -> Any:
    """The pass that has what is random in blocks computed again from the forward's seeds.

    torch takes seeds for something that can be computed again: backward would draw another dropout.
    """
    # Imported here: importing inductor takes most of a second.
    from torch._inductor import inductor_prims
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class SeedsKept(CustomGraphPass):
        def uuid(self) -> Any:
            return get_hash_for_files((__file__,))

        def __call__(self, graph: torch.fx.Graph) -> None:
            for node in graph.nodes:
                if node.target in (inductor_prims.seeds, inductor_prims.seed):
                    node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

    return SeedsKept()


def checkpoint_blocks(gpt: GPT, on_cpu: bool) -> None:
    """Keep only the inputs of what repeats over depth, and run it again in backward.

    Args:
        gpt: the model, before an engine is built around it, and after `compile_blocks` where both are wanted.
        on_cpu: whether those inputs wait in the CPU's memory.
    """
    for block, name in gpt.repeated_methods():
        _replace(block, name, _checkpointed(block, getattr(block, name), on_cpu))


def _replace(block: nn.Module, name: str, method: Method) -> None:
    setattr(block, name, functools.wraps(getattr(block, name))(method))


def _where_it_pays(gpt: GPT, module: nn.Module, compiled: Method, plain: Method) -> Method:
    def run(*given: Any) -> Any:
        return (compiled if module.training or gpt.is_validated else plain)(*given)

    return run


def _checkpointed(block: nn.Module, method: Method, on_cpu: bool) -> Method:
    def run(*given: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return method(*given)
        if not on_cpu:
            return checkpoint(method, *given, use_reentrant=False)
        with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
            return checkpoint(method, *given, use_reentrant=False)

    return run


class _Warnings(logging.Handler):
    """Turns what torch.compile logs into one sentence for each place, said once."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__()
        self._warn = warn
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name == _CONVERSIONS.name:
            place, reason = _failure(text)
            sentence = f"torch.compile leaves {place} uncompiled, which costs speed: {reason}"
        else:
            place, reason = _graph_break(text)
            sentence = f"torch.compile breaks the graph at {place}, which costs speed: {reason}"
        if place not in self._said:
            self._said.add(place)
            self._warn(sentence)


def _graph_break(text: str) -> tuple[str, str]:
    """From dynamo's report of a graph break: file:line, and the sentence that says why."""
    place = re.search(r"Graph break in user code at (\S+:\d+)", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    explained = [i for i, line in enumerate(lines) if line.startswith("Explanation:")]
    reason = lines[explained[0] - 1] if explained else lines[min(1, len(lines) - 1)]
    return place[1] if place else "an unknown line", reason[:200]


def _failure(text: str) -> tuple[str, str]:
    """From dynamo's report of a function that it does not compile: its file:line, and the error."""
    place = re.search(r"WON'T CONVERT \S+ (\S+) line (\d+)", text)
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Failed)\b.*", text, re.MULTILINE)
    reason = errors[-1] if errors else " ".join(text.split())
    return f"{place[1]}:{place[2]}" if place else "a part of a block", reason[:200]
