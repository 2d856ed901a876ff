"""What a step of training takes in FLOPs, communication and time, worked out before it runs."""

import math
from dataclasses import dataclass

from ..config import Recipe
from ..engine.hardware import GPU, NODE
from .memory import MemoryModel

BANDWIDTH_SHARE = 0.7
"""Of the nominal bandwidth that collectives of hundreds of megabytes reach: an assumption, not measured."""
COPIED = 58e9
"""Bytes per second of a checkpoint's copy to pinned memory: GPT-2 small's 1.74 GB in 0.03 s, on one H200."""
STALL = 0.02
"""Seconds that the loop waits beyond the copy, there."""
FIRST_COPY = 6.3 / 4.95e9
"""Seconds per byte of the first copy, which makes that memory: GPT-2 Medium's, there, the slower of two."""
WRITTEN = 0.4e9
"""Bytes per second that are written beside the loop: GPT-2 Medium's 6.4 GB in 16 s, there; disks differ."""


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


@dataclass(frozen=True)
class Pauses:
    """What a run does between its steps: how often, and seconds of each.

    Attributes:
        steps_s: seconds of all steps
        validations: how many
        validation_s: of one, by its FLOPs: a forward of each token
        checkpoints: how many
        first_copy_s: of the first one, which makes the memory that the others are copied to
        copy_s: of each other one, with what the loop waits beyond its copy
        late_s: of each other one, what it waits because the one before is still being written
    """

    steps_s: float
    validations: int
    validation_s: float
    checkpoints: int
    first_copy_s: float
    copy_s: float
    late_s: float

    @property
    def validation_share(self) -> float:
        """Of the run's time."""
        return self.validations * self.validation_s / self._whole

    @property
    def checkpoint_share(self) -> float:
        """Of the run's time."""
        return self._checkpoints_s / self._whole

    def validations_within(self, share: float) -> int:
        """How many validations take at most this share of the run's time."""
        others = self.steps_s + self._checkpoints_s
        return int(share / (1 - share) * others / self.validation_s)

    @property
    def _checkpoints_s(self) -> float:
        later = max(0, self.checkpoints - 1)
        return min(1, self.checkpoints) * self.first_copy_s + later * (self.copy_s + self.late_s)

    @property
    def _whole(self) -> float:
        return self.steps_s + self.validations * self.validation_s + self._checkpoints_s


def pauses(
    model: MemoryModel,
    recipe: Recipe,
    time: StepTime,
    flops: int,
    gpu: GPU,
    ranks: int,
    mfu: float,
    steps: float,
) -> Pauses:
    """What validations and checkpoints take of a run of so many steps, each of `time`.

    Args:
        model: what is trained, and how.
        recipe: has the intervals, and the tokens of a validation.
        time: of a step.
        flops: `flops_per_token` of the model.
        gpu: what each rank is.
        ranks: how many.
        mfu: model FLOPs utilisation of the compute.
        steps: of the run.
    """
    train, copied = recipe.train, model.checkpoint_copy(ranks)
    validation_s = flops / 3 * recipe.data.validation_tokens / (ranks * gpu.peak_flops * mfu)
    interval_s = train.checkpoint_every * time.whole
    if train.checkpoint_minutes is not None:
        interval_s = min(interval_s, 60 * train.checkpoint_minutes)
    written = copied + 4 * model.shape.parameters  # rank 0 adds the fp32 weights for other programs
    return Pauses(
        steps_s=steps * time.whole,
        validations=math.ceil(steps / train.val_every),
        validation_s=validation_s,
        checkpoints=math.ceil(steps * time.whole / interval_s),
        first_copy_s=copied * FIRST_COPY,
        copy_s=copied / COPIED + STALL,
        late_s=max(0.0, written / WRITTEN - interval_s),
    )


def slowest_link(gpu: GPU, ranks: int) -> float:
    """Nominal bytes/s at which each of `ranks` can send to the next in a ring.

    A ring crosses the network once per node and not once per GPU. NCCL lays a ring through each port of a
    node and deals the data out to them, so that all ports together carry what one GPU sends.
    """
    return gpu.intra_node if ranks <= NODE else min(gpu.intra_node, NODE * gpu.inter_node)
