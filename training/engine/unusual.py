"""Parameters that DeepSpeed does not expect: without dimensions, and without a gradient."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from model import GPT
from model.errors import UserError

from .ranks import deepspeed


@contextmanager
def scalars_allowed() -> Iterator[None]:
    """While an engine is built, send rank 0's weights flat.

    DeepSpeed views each parameter's last dimension as bytes, which a parameter of no dimension has not, nor
    has one whose memory is not in order. Under ZeRO-3 it sends all weights again as it splits them.
    """
    engine, splitter = deepspeed.runtime.engine.DeepSpeedEngine, deepspeed.zero.Init
    before = engine._broadcast_model, splitter._zero_init_param
    engine._broadcast_model, splitter._zero_init_param = _broadcast_flat, _split
    try:
        yield
    finally:
        engine._broadcast_model, splitter._zero_init_param = before


def _broadcast_flat(engine: Any) -> None:
    for parameter in engine.module.parameters():
        flat = parameter.data.reshape(-1)
        dist.broadcast(flat.view(torch.uint8), 0)
        if flat.data_ptr() != parameter.data_ptr():
            parameter.data.copy_(flat.view(parameter.shape))


def _split(splitter: Any, parameter: Any) -> None:
    splitter._convert_to_deepspeed_param(parameter)
    parameter.partition()


@contextmanager
def scalars_merged(converter: ModuleType) -> Iterator[None]:
    """While a checkpoint is converted to the universal format, scalars are vectors of one number.

    DeepSpeed concatenates the parts of a parameter, which a tensor of no dimension has not.
    """
    merge = converter._merge_zero_shards

    def merged(folder: str, state: str, *more: Any) -> Any:
        parts = merge(folder, state, *more)
        return parts if state == "step" else [part.reshape(-1) if part.dim() == 0 else part for part in parts]

    converter._merge_zero_shards = merged  # type: ignore[attr-defined]
    try:
        yield
    finally:
        converter._merge_zero_shards = merge  # type: ignore[attr-defined]


def keep_blocks_whole(gpt: GPT) -> None:
    """Have ZeRO-3 gather and reduce a block with parameters that only some inputs use as one.

    It gathers what a module needs when the module is called, and so the ranks would wait for each other where
    one of them calls an expert that another leaves empty.
    """
    known = {id(parameter) for parameter in gpt.sometimes}
    for block in gpt.blocks:
        if any(id(parameter) in known for parameter in block.parameters()):
            deepspeed.utils.set_z3_leaf_module(block, True)
    gpt.sometimes.clear()  # their gradient of 0 comes from ZeRO-3


def watch_unused(gpt: GPT) -> None:
    """Have the backward that reaches a parameter which was left out of training raise UserError.

    It cannot learn: it is in no group of the optimizer and in no partition. `frozen` says to DeepSpeed that
    it is not to.
    """
    for name, parameter in gpt.unused_parameters().items():
        parameter.requires_grad_(True)
        parameter.register_hook(partial(_refuse, name))


def _refuse(name: str, gradient: torch.Tensor) -> None:
    raise UserError(
        f"{name} was left out of training, because no probe of the design used it, but this step does: have "
        "every forward use it, such as y + 0 * parameter, and begin the run again"
    )


@contextmanager
def frozen(gpt: GPT) -> Iterator[None]:
    """While a checkpoint is written or read, unused parameters are what DeepSpeed calls frozen."""
    unused = gpt.unused_parameters().values()
    for parameter in unused:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in unused:
            parameter.requires_grad_(True)
