"""What a step of training takes in FLOPs, communication and time, worked out before it runs."""

from dataclasses import dataclass

from ..engine.hardware import GPU, NODE
from .memory import MemoryModel

BANDWIDTH_SHARE = 0.7
"""Of the nominal bandwidth that collectives of hundreds of megabytes reach: an assumption, not measured."""


def communication(model: MemoryModel, ranks: int, accumulation: int) -> dict[str, int]:
    """Bytes that a rank sends per step, by what for; ring collectives send (ranks - 1) / ranks of a tensor.

    ZeRO-1 reduces once per step, by an all-reduce (DeepSpeed's `use_multi_rank_bucket_allreduce`), and
    gathers the new weights. ZeRO-2 reduces each micro-batch. ZeRO-3 scatters the sums of each micro-batch,
    and gathers the weights for its forward and again for its backward.
    """
    ring = (ranks - 1) / ranks
    parameters, stage = model.shape.parameters, model.stage
    gradients = ring * sum(wide * sum(sizes) for wide, sizes in model.sizes_by_reduction().items())
    weights = ring * model.weight * parameters
    if stage == 3:
        sent = {"gradients": accumulation * gradients, "weights": 2 * accumulation * weights}
    else:
        sent = {"gradients": 2 * gradients * (accumulation if stage == 2 else 1)}
        sent["weights"] = weights if stage else 0
    return {name: round(size) for name, size in sent.items()}


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        compute: forward and backward at the stated MFU
        communicate: what is sent, at `BANDWIDTH_SHARE` of the slowest link, after the compute and not beside
        it
    """

    compute: float
    communicate: float

    @property
    def whole(self) -> float:
        """Seconds in all."""
        return self.compute + self.communicate


def step_time(
    model: MemoryModel, flops: int, tokens: int, gpu: GPU, ranks: int, accumulation: int, mfu: float
) -> StepTime:
    """The time of a step of `tokens` tokens of all ranks.

    Args:
        model: what is trained, and how.
        flops: `flops_per_token` of it.
        tokens: of the global batch.
        gpu: what each rank is.
        ranks: how many.
        accumulation: micro-batches per rank and step.
        mfu: model FLOPs utilisation of the compute, communication left out.
    """
    recomputed = 4 / 3 if model.deepspeed.activation_checkpointing is not None else 1  # forward once more
    sent = sum(communication(model, ranks, accumulation).values())
    seconds = sent / (BANDWIDTH_SHARE * slowest_link(gpu, ranks))
    return StepTime(recomputed * flops * tokens / (ranks * gpu.peak_flops * mfu), seconds)


def slowest_link(gpu: GPU, ranks: int) -> float:
    """Nominal bytes/s at which each of `ranks` can send to the next in a ring.

    A ring crosses the network once per node and not once per GPU. NCCL lays a ring through each port of a
    node and deals the data out to them, so that all ports together carry what one GPU sends.
    """
    return gpu.intra_node if ranks <= NODE else min(gpu.intra_node, NODE * gpu.inter_node)
