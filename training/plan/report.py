"""A plan in words, in tables and as numbers."""

import math
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from ..config import Recipe
from .accounting import Pauses, communication
from .attempt import RESERVE
from .command import MOST_GPUS
from .memory import Memory
from .scaling import Plan, Row

MOST_VALIDATION = 0.02
"""A larger share of a run in validation is named."""
MOST_CHECKPOINTS = 0.005
"""A larger share of a run that waits for checkpoints is named."""


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / 2**30:.2f} GiB"


def describe(plan: Plan, gpu: str, ranks: int, recipe_name: str) -> tuple[str, dict[str, Any]]:
    """The whole report, and the same as numbers.

    Args:
        plan: what is planned.
        gpu: the name of its kind of GPU.
        ranks: how many of them are asked for.
        recipe_name: of the recipe's file.
    """
    deepspeed = plan.deepspeed
    row = plan.row(ranks, deepspeed.micro_batch)
    memory = plan.memory.of(ranks, deepspeed.micro_batch, row.accumulation)
    copied = plan.memory.checkpoint_copy(ranks)
    sent = communication(plan.memory, ranks, row.accumulation)
    largest = plan.largest_micro_batch(ranks)
    divides = max(
        (m for m in range(1, largest + 1) if deepspeed.train_batch_size % (m * ranks) == 0), default=0
    )
    lines = [
        f"{recipe_name}: {plan.recipe.variant}, {plan.memory.shape.parameters:,} parameters, "
        f"{plan.flops / 1e9:.3g} GFLOPs per token, {deepspeed.precision}, ZeRO-{deepspeed.stage}, "
        f"on {ranks} x {gpu}",
        f"a step: {deepspeed.micro_batch} sequences x {row.accumulation} accumulation steps x {ranks} ranks "
        f"x {plan.recipe.model.block_size} tokens = "
        f"{row.train_batch_size * plan.recipe.model.block_size:,} tokens",
        "",
        _memory_table(plan, memory, gpu, copied),
        "",
        f"largest micro-batch that fits: {largest}"
        + (f", and {divides} divides train_batch_size {deepspeed.train_batch_size}" if divides else ""),
        f"communication per step and rank: gradients {gib(sent['gradients'])}, weights "
        f"{gib(sent['weights'])}, {row.communication_share:.1%} of the time",
        f"at an MFU of {plan.mfu:.0%}: {row.tokens_per_s:,.0f} tokens/s, {row.step_s:.2f} s per step, "
        f"{row.steps:,.0f} steps in {row.days:.3g} days, {row.gpu_hours:,.0f} GPU hours",
    ]
    between = plan.pauses(row)
    lines += told(between, plan.recipe)
    if not row.fits:
        lines.append(f"IT DOES NOT FIT: {gib(memory.peak)} of {gib(plan.usable)}")
    rows = plan.rows()
    limits = plan.limits(rows)
    lines += ["", _scaling_table(rows), ""]
    lines += limits or [f"up to {MOST_GPUS} GPUs nothing speaks against data parallel"]
    facts = {
        "parameters": plan.memory.shape.parameters,
        "flops_per_token": plan.flops,
        "memory": asdict(memory)
        | {"phases": dict(memory.phases), "peak": memory.peak, "usable": plan.usable, "copied": copied},
        "communication": sent,
        "largest_micro_batch": largest,
        "plan": asdict(row),
        "pauses": asdict(between)
        | {"validation_share": between.validation_share, "checkpoint_share": between.checkpoint_share},
        "scaling": [asdict(r) for r in rows],
        "limits": limits,
    }
    return "\n".join(lines), facts


def told(between: Pauses, recipe: Recipe) -> list[str]:
    """What validations and checkpoints take, and what to do where it is much."""
    train, validation, checkpoint = recipe.train, between.validation_share, between.checkpoint_share
    later = between.copy_s + between.late_s
    lines = [
        f"{between.validations} validations of at most {recipe.data.validation_tokens:,} tokens: "
        f"{between.validation_s:.2f} s each by FLOPs, {validation:.1%} of the run",
        f"{between.checkpoints} checkpoints: the loop waits {between.first_copy_s:.1f} s for the first and "
        f"{later:.2f} s for each other, {checkpoint:.2%} of the run",
    ]
    if validation > MOST_VALIDATION:
        few = between.validations_within(MOST_VALIDATION)
        rarer = ", even a single one"
        if few:
            rarer = f": --train.val_every {math.ceil(train.val_every * between.validations / few)} would not"
        lines.append(
            f"validation takes more than {MOST_VALIDATION:.0%} of the run{rarer}; fewer "
            "data.validation_tokens take less, and are another set"
        )
    if checkpoint > MOST_CHECKPOINTS:
        reason = (
            f"each waits {between.late_s:.1f} s until the one before it is written"
            if between.late_s
            else "most of it is the first one's, of a run as short as this"
            if between.first_copy_s > between.checkpoints * later
            else "they are copied so often"
        )
        lines.append(
            f"checkpoints take more than {MOST_CHECKPOINTS:.1%} of the run, because {reason}: raise "
            f"train.checkpoint_every, now {train.checkpoint_every}"
        )
    return lines


def _memory_table(plan: Plan, memory: Memory, gpu: str, copied: int) -> str:
    phase = max(memory.phases, key=lambda phase: memory.phases[phase])
    lines = [
        ["weights", gib(memory.weights)],
        ["gradients", gib(memory.gradients)],
        ["master weights and optimizer states", gib(memory.states)],
        ["activations and temporary tensors, at most", gib(memory.activations)],
        ["reduction buckets", gib(memory.buffers)],
        ["states in the CPU's memory", gib(memory.host)],
        ["a checkpoint's copy there, on rank 0", gib(copied)],
        [f"peak, in the phase '{phase}'", gib(memory.peak)],
        [f"usable: {gpu} less a reserve of {RESERVE:.0%}", gib(plan.usable)],
    ]
    return tabulate(lines, headers=["memory per rank", ""], colalign=("left", "right"))


def _scaling_table(rows: list[Row]) -> str:
    lines = [
        [r.gpus, r.train_batch_size, r.micro_batch, r.accumulation, gib(r.peak_bytes),
         "yes" if r.fits else "no", f"{r.communication_share:.0%}",
         f"{r.tokens_per_s:,.0f}", f"{r.days:.3g}", f"{r.gpu_hours:,.0f}"]
        for r in rows
    ]  # fmt: skip
    headers = ["GPUs", "batch", "micro", "accum", "peak", "fits", "comm", "tokens/s", "days", "GPU hours"]
    return tabulate(lines, headers=headers, disable_numparse=True, stralign="right")
