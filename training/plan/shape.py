"""What of a model decides how much DeepSpeed keeps, copies and sends: its parameters' sizes, in elements."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from model import GPT

from ..config import DeepSpeedConfig
from ..engine.build import optimizer_groups


@dataclass(frozen=True)
class Shape:
    """What of a model decides about memory and communication, in elements.

    Attributes:
        groups: the optimizer's groups in order, each the sizes of its parameters
        matrices: what Muon would take: the blocks' matrices
        linear: weights and biases of plain `nn.Linear`s, which DeepSpeed reduces in bf16 under autocast
        largest: the largest parameter
    """

    groups: tuple[tuple[int, ...], ...]
    matrices: int
    linear: int
    largest: int

    @property
    def parameters(self) -> int:
        """All that are trained, the tied embedding once."""
        return sum(map(sum, self.groups))


def shape_of(gpt: GPT, deepspeed: DeepSpeedConfig) -> Shape:
    """The `Shape` of a model under the optimizer that the JSON names."""
    groups = optimizer_groups(gpt, deepspeed)
    linear = {id(p): p.numel() for m in gpt.modules() if type(m) is nn.Linear for p in m.parameters()}
    return Shape(
        groups=tuple(tuple(p.numel() for p in group["params"]) for group in groups),
        matrices=sum(p.numel() for group in groups if group.get("use_muon") for p in group["params"]),
        linear=sum(linear.values()),
        largest=max(p.numel() for p in gpt.used_parameters()),
    )


def largest_copy(sizes: Sequence[int], limit: int, element: int, communicate: int) -> int:
    """Bytes that `DeepSpeedEngine.allreduce_no_retain` copies for its largest bucket of `sizes`."""
    largest = 0
    bucket: list[int] = []
    for i, size in enumerate(sizes):
        bucket.append(size)
        if sum(bucket) > limit or i == len(sizes) - 1:
            copied = element if len(bucket) > 1 else 0
            converted = communicate if communicate != element else 0
            largest = max(largest, (copied + converted) * sum(bucket))
            bucket = []
    return largest


def largest_partition(groups: Sequence[Sequence[int]], ranks: int) -> int:
    """Elements of the parameters of which a rank owns at least a part: those of the rank that has most."""
    owned = [0] * ranks
    for sizes in groups:
        share = -(-sum(sizes) // ranks)
        end = 0
        for size in sizes:
            start, end = end, end + size
            for rank in range(start // share, (end - 1) // share + 1):
                owned[rank] += size
    return max(owned)


def copy_of_bucket(sizes: Sequence[int], bucket: int, element: int, communicate: int) -> int:
    """Bytes that `DeepSpeedZeroOptimizer.average_tensor` copies for a full bucket or a large parameter."""
    filled = max(min(bucket, sum(sizes)), max(sizes) if max(sizes) > bucket else 0)
    return (element + (communicate if communicate != element else 0)) * filled
