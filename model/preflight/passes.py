"""A forward and a backward pass: what fails in them, in a sentence with the line of the design's own file."""

import dis
import re
import types
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..gpt import GPT
from .candidate import Candidate, logits
from .independence import tokens
from .report import Refused


def runs(candidate: Candidate) -> str:
    """A forward and a backward pass; what fails there is told in a sentence with the design's own line."""
    model, idx = candidate.build().train(), tokens(candidate)
    returned: list[str] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        code = getattr(type(module).forward, "__code__", None)
        shapes = [
            tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__ for x in (*args, output)
        ]
        if code and args and shapes[0] != shapes[-1]:
            returned.append(
                f"{type(module).__name__}.forward ({Path(code.co_filename).name} line {_last_return(code)}) "
                f"returns a {shapes[-1]} for {shapes[0]}: it must return one tensor of shape (B, T, C)"
            )

    designs = candidate.designs
    kinds = (designs.norm, designs.block, designs.topology)
    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, kinds)]
    try:
        _both(model, idx)
    except Exception as error:
        if returned:
            raise Refused(returned[0]) from error
        if "inplace operation" in str(error):
            raise Refused(_changed_in_place(model, idx)) from error
        raise
    finally:
        for hook in hooks:
            hook.remove()
    return "a forward and a backward pass"


def _shape(given: Any) -> str:
    return str(tuple(given.shape)) if isinstance(given, torch.Tensor) else type(given).__name__


def _last_return(code: types.CodeType) -> int:
    lines = [
        i.positions.lineno for i in dis.get_instructions(code) if i.opname == "RETURN_VALUE" and i.positions
    ]
    return max((line for line in lines if line), default=code.co_firstlineno)


def _both(model: GPT, idx: torch.Tensor) -> None:
    y = logits(model, idx)
    if y.requires_grad:
        y.square().mean().backward()


def _changed_in_place(model: GPT, idx: torch.Tensor) -> str:
    """What anomaly detection says of the operation whose result was changed before its backward pass."""
    with warnings.catch_warnings(record=True) as warned, torch.autograd.set_detect_anomaly(True, False):
        warnings.simplefilter("always")
        with suppress(RuntimeError):
            _both(model, idx)
    traces = [str(each.message) for each in warned if "Traceback of forward call" in str(each.message)]
    where = [(Path(file), line) for file, line in re.findall(r'File "(.+?)", line (\d+)', "".join(traces))]
    ours = (Path(torch.__file__).parent, Path(__file__).parents[1])
    own = [(file, line) for file, line in where if not any(map(file.is_relative_to, ours))]
    place = f" made at {own[-1][0].name} line {own[-1][1]}" if own else ""
    return (
        f"a tensor{place} is changed in place afterwards, which breaks autograd: its backward pass needs the "
        "value as it was; write s = s + y, not s += y"
    )
