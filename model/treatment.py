"""How the tensors of a design are treated: which precision its buffers have, and which parameters train."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

Buffers = Literal["kept", "cast"]


@dataclass(frozen=True)
class Treatment:
    """What `model.probe` decides about a design, once for all starts of a run.

    Attributes:
        buffers: `kept` where floating buffers stay in the precision that the design gave them, whatever the
            parameters are cast to; `cast` where they follow the parameters, because the design does not run
            otherwise. Complex buffers and those of integers are never cast.
        buffer_names: the floating buffers that `cast` is about; empty where they are kept.
        unused: parameters that no probe's gradient reached. They are no part of the optimizer, of ZeRO's
            partitions and of the number of parameters.
        sometimes: parameters that some probes reached and others did not, such as those of an expert without
            tokens. They train as all others, and get a gradient of 0 where a batch does not use them, so that
            the ranks reduce the same tensors.
    """

    buffers: Buffers = "kept"
    buffer_names: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    sometimes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """As keys of summary.json."""
        return {
            "buffers": self.buffers,
            "cast_buffers": list(self.buffer_names),
            "unused_parameters": list(self.unused),
            "sometimes_unused_parameters": list(self.sometimes),
        }

    def buffer_warning(self) -> str | None:
        """What is said where buffers are cast."""
        if self.buffers == "kept":
            return None
        return (
            f"{len(self.buffer_names)} buffers are cast like the parameters, to bf16 where those are, "
            "because the design does not run with its own precision of them: "
            f"{in_list(self.buffer_names)}; to keep them in fp32, write .type_as(x) where they are used"
        )

    def parameter_warning(self) -> str | None:
        """What is said where a parameter does not always get a gradient."""
        found = []
        if self.unused:
            found.append(
                f"{len(self.unused)} parameters get no gradient and are left out of training and of the "
                f"number of parameters: {in_list(self.unused)}"
            )
        if self.sometimes:
            found.append(
                f"{len(self.sometimes)} parameters get a gradient from some inputs only, and one of 0 from "
                f"others: {in_list(self.sometimes)}"
            )
        return "; ".join(found) or None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Treatment":
        """From such keys; a run that has none was made before there was a choice: all kept, all trained."""
        return cls(
            cast(Buffers, facts.get("buffers", "kept")),
            tuple(facts.get("cast_buffers", ())),
            tuple(facts.get("unused_parameters", ())),
            tuple(facts.get("sometimes_unused_parameters", ())),
        )


def for_buffers(
    module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor], buffers: Buffers
) -> Callable[[torch.Tensor], torch.Tensor]:
    """`change`, which `nn.Module.to` and the like make of every tensor, as far as buffers follow it.

    torch would cast the complex ones too, which drops their imaginary part.
    """
    known = {id(buffer) for buffer in module.buffers()}

    def changed(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in known:
            return change(tensor)
        if tensor.is_complex():
            return tensor.to(change(tensor.real).device)
        found = change(tensor)
        return found if buffers == "cast" or found.dtype == tensor.dtype else tensor.to(found.device)

    return changed


def cast_floating_buffers(module: nn.Module, dtype: torch.dtype) -> None:
    """Bring the floating buffers of a module to `dtype`."""
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)


def cast_floating(module: nn.Module, dtype: torch.dtype) -> None:
    """Bring floating parameters and buffers to `dtype`; `to` would make complex ones real."""
    module._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


class ZeroGradient(torch.autograd.Function):
    """x as it is; backward gives every parameter a gradient of 0 beside what it gets elsewhere.

    What stands at the beginning of a model comes last in backward: all of these parameters have their
    gradients then, in the order given, whichever of them a batch has used. DeepSpeed sums gradients over the
    ranks in the order in which they appear, which must be the same on all.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], *map(torch.zeros_like, ctx.saved_tensors)


def in_list(names: Iterable[str], most: int = 4) -> str:
    """The first names for a sentence, and how many follow."""
    known = list(names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more
