"""Checkpoints are read without executing code: tensors, and the classes that DeepSpeed puts beside them."""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from model.errors import UserError


@contextmanager
def no_code_from_files() -> Iterator[None]:
    """While DeepSpeed reads a checkpoint, `torch.load` takes no class that could execute code.

    DeepSpeed asks for all classes wherever it reads a file. Raises UserError for a file that holds another.
    """
    load = torch.load
    torch.load = partial(_load, load)
    try:
        with torch.serialization.safe_globals(_known_classes()):
            yield
    finally:
        torch.load = load


def load_safely(file: Any, **options: Any) -> Any:
    """`torch.load` on the CPU, of the classes that a checkpoint of DeepSpeed's holds, and no others.

    Raises UserError where the file holds another.
    """
    with torch.serialization.safe_globals(_known_classes()):
        return _load(torch.load, file, map_location="cpu", **options)


def _load(load: Any, file: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return load(file, *arguments, **options | {"weights_only": True})
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|function|type) ['\"<]*([\w]+(?:\.[\w]+)+)", str(error))
        what = found[1] if found else "something else than tensors"
        raise UserError(
            f"{file} holds {what}, which no checkpoint of NormLab does and which could execute code: do not "
            "use it unless you know who wrote it"
        ) from error


def _known_classes() -> list[Any]:
    """What stands in DeepSpeed's files beside tensors and plain values: enumerations, counters, records."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
