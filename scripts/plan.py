"""What a run needs, before a GPU is rented: memory a rank, communication, time, GPU hours.

    python scripts/plan.py --config recipes/gpt2_medium_fineweb.yaml \\
        --deepspeed_config ds_configs/zero1_bf16.json --gpus 8xH100 [--mfu 0.4] [--json FILE]

and any --section.key or --ds.key that train.py takes.
"""

import sys

# the project's root instead of scripts/, whose tokenize.py would hide the standard library's
sys.path[0] = __file__.rpartition("/scripts/")[0]

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate
from torch._subclasses.fake_tensor import FakeTensorMode

from model import GPT
from training.config.command import Command
from training.config.ds_config import load_ds_config
from training.config.recipe import Recipe, recipe_of
from training.engine.hardware import GPU, GPUS, NODE
from training.plan.accounting import communication, flops_per_token, step_time
from training.plan.memory import MemoryModel

MFU = 0.4
"""Of the compute alone. An assumption: nothing here was measured on a GPU."""
RESERVE = 0.1
"""Of a GPU's memory: the CUDA context, NCCL's buffers, fragmentation."""
MOST_GPUS = 4096
SLOW_NETWORK = 0.2
"""A larger share of a step than this in communication, and data parallel wastes its GPUs."""
FEW_TOKENS = 4096
"""Tokens of a micro-batch below which products are too small to keep a GPU busy: a rule of thumb."""


@dataclass(frozen=True)
class Row:
    """A number of GPUs: batch sizes in sequences, bytes a rank, seconds, tokens/s of all ranks.

    `steps` are as many as the recipe's tokens take.
    """

    gpus: int
    train_batch_size: int
    micro_batch: int
    accumulation: int
    peak_bytes: int
    fits: bool
    communication_bytes: int
    communication_share: float
    steps: float
    step_s: float
    tokens_per_s: float
    days: float
    gpu_hours: float


class Plan:
    """A recipe under a DeepSpeed JSON on one kind of GPU.

    Args:
        recipe: model and length.
        ds_config: as `load_ds_config` returns it.
        asked: `train_batch_size` and `train_micro_batch_size_per_gpu` before they were made to divide.
        gpu: what each rank is.
        mfu: see `MFU`.
    """

    def __init__(
        self, recipe: Recipe, ds_config: dict[str, Any], asked: tuple[int, int], gpu: GPU, mfu: float
    ) -> None:
        self.recipe, self.ds_config, self.gpu, self.mfu = recipe, ds_config, gpu, mfu
        self.batch, self.micro_batch = asked
        with FakeTensorMode():
            self.flops = flops_per_token(GPT(recipe.model))
        self.memory = MemoryModel(recipe.model, ds_config)
        self.room = int((1 - RESERVE) * gpu.memory)

    def largest_micro_batch(self, ranks: int, most: int = 4096) -> int:
        """The largest that fits, 0 if none does."""
        fits: Callable[[int], bool] = lambda size: self.memory.of(ranks, size, 2).peak <= self.room  # noqa: E731
        low, high = 0, 1
        while high <= most and fits(high):
            low, high = high, 2 * high
        high = min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def row(self, ranks: int, micro_batch: int | None = None) -> Row:
        """`ranks` GPUs, with the given micro-batch or the largest that fits and divides, the JSON's at most.

        A global batch that the ranks do not divide is rounded up to one that they do.
        """
        batch = -(-self.batch // ranks) * ranks
        a_rank = batch // ranks
        if micro_batch is None:
            wanted = min(self.micro_batch, a_rank)
            divisors = [size for size in range(wanted, 0, -1) if a_rank % size == 0]
            micro_batch = next(
                (m for m in divisors if self.memory.of(ranks, m, a_rank // m).peak <= self.room), 1
            )
        accumulation = a_rank // micro_batch
        peak = self.memory.of(ranks, micro_batch, accumulation).peak
        tokens = batch * self.recipe.model.block_size
        time = step_time(self.memory, self.flops, tokens, self.gpu, ranks, accumulation, self.mfu)
        steps = self.recipe.train.steps * self.batch / batch  # the same tokens
        return Row(
            gpus=ranks,
            train_batch_size=batch,
            micro_batch=micro_batch,
            accumulation=accumulation,
            peak_bytes=peak,
            fits=peak <= self.room,
            communication_bytes=sum(communication(self.memory, ranks, accumulation).values()),
            communication_share=time.communicate / time.whole,
            steps=steps,
            step_s=time.whole,
            tokens_per_s=tokens / time.whole,
            days=steps * time.whole / 86400,
            gpu_hours=steps * time.whole * ranks / 3600,
        )

    def limits(self) -> list[str]:
        """Where data parallel of this kind stops being the right tool, a sentence for each reason."""
        rows = [self.row(2**power) for power in range(MOST_GPUS.bit_length())]
        batch = self.batch
        block = self.recipe.model.block_size
        name = f"ZeRO-{self.memory.stage} data parallel"
        reasons = [
            (
                lambda row: row.gpus > batch,
                "has more GPUs than train_batch_size {batch} has sequences: a larger batch changes the "
                "experiment, so split the model instead (tensor or pipeline parallel, not in NormLab)",
            ),
            (
                lambda row: row.communication_share > SLOW_NETWORK,
                "spends {share:.0%} of a step on communication, which data parallel cannot shrink: the bytes "
                "that a rank sends stay the same while its work becomes less",
            ),
            (
                lambda row: (
                    row.gpus <= batch and row.accumulation == 1 and row.micro_batch * block < FEW_TOKENS
                ),
                "leaves a GPU {tokens:,} tokens a step, too few to keep it busy: it will not reach that MFU",
            ),
        ]
        found = []
        for is_limit, reason in reasons:
            if first := next((row for row in rows if is_limit(row)), None):
                facts = reason.format(
                    batch=batch, share=first.communication_share, tokens=first.micro_batch * block
                )
                found.append((first.gpus, f"from {first.gpus} GPUs on {name} {facts}"))
        said = [sentence for _, sentence in sorted(found)]
        if not any(row.fits for row in rows):
            said.append(
                f"{name} does not fit on any number of these GPUs, even at micro-batch 1: split more "
                "(ZeRO-2, ZeRO-3), recompute (activation_checkpointing) or offload (offload_optimizer)"
            )
        elif not rows[0].fits:
            first = next(row for row in rows if row.fits)
            said.append(f"below {first.gpus} GPUs it does not fit even at micro-batch {rows[0].micro_batch}")
        return said


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / 2**30:.2f} GiB"


def describe(plan: Plan, name: str, ranks: int, recipe_file: Path) -> tuple[str, dict[str, Any]]:
    """The whole report, and the same as numbers."""
    config, ds = plan.recipe.model, plan.ds_config
    micro_batch = ds["train_micro_batch_size_per_gpu"]
    row = plan.row(ranks, micro_batch)
    memory = plan.memory.of(ranks, micro_batch, row.accumulation)
    sent = communication(plan.memory, ranks, row.accumulation)
    largest = plan.largest_micro_batch(ranks)
    divides = max(
        (m for m in range(1, largest + 1) if ds["train_batch_size"] % (m * ranks) == 0),
        default=0,
    )
    phase = max(memory.phases, key=lambda phase: memory.phases[phase])
    lines = [
        f"{recipe_file.name}: {plan.recipe.variant}, {plan.memory.shape.parameters:,} parameters, "
        f"{plan.flops / 1e9:.3g} GFLOPs a token, {plan.memory.mode}, ZeRO-{plan.memory.stage}, "
        f"on {ranks} x {name}",
        f"a step: {micro_batch} sequences x {row.accumulation} accumulation steps x {ranks} ranks x "
        f"{config.block_size} tokens = {row.train_batch_size * config.block_size:,} tokens",
        "",
        tabulate(
            [
                ["weights", gib(memory.weights)],
                ["gradients", gib(memory.gradients)],
                ["master weights and optimizer states", gib(memory.states)],
                ["activations and temporary tensors, at most", gib(memory.activations)],
                ["reduction buckets", gib(memory.buffers)],
                ["in the CPU's memory", gib(memory.host)],
                [f"peak, in the phase '{phase}'", gib(memory.peak)],
                [f"room: {name} less a reserve of {RESERVE:.0%}", gib(plan.room)],
            ],
            headers=["memory a rank", ""],
            colalign=("left", "right"),
        ),
        "",
        f"largest micro-batch that fits: {largest}"
        + (f", and {divides} divides train_batch_size {ds['train_batch_size']}" if divides else ""),
        f"communication a step and rank: gradients {gib(sent['gradients'])}, weights {gib(sent['weights'])}, "
        f"{row.communication_share:.1%} of the time",
        f"at an MFU of {plan.mfu:.0%}: {row.tokens_per_s:,.0f} tokens/s, {row.step_s:.2f} s a step, "
        f"{row.steps:,.0f} steps in {row.days:.3g} days, {row.gpu_hours:,.0f} GPU hours",
    ]
    if not row.fits:
        lines.append(f"IT DOES NOT FIT: {gib(memory.peak)} of {gib(plan.room)}")
    powers = [plan.row(2**power) for power in range(MOST_GPUS.bit_length())]
    table = [
        [r.gpus, r.train_batch_size, r.micro_batch, r.accumulation, gib(r.peak_bytes),
         "yes" if r.fits else "no", f"{r.communication_share:.0%}",
         f"{r.tokens_per_s:,.0f}", f"{r.days:.3g}", f"{r.gpu_hours:,.0f}"]
        for r in powers
    ]  # fmt: skip
    headers = ["GPUs", "batch", "micro", "accum", "peak", "fits", "comm", "tokens/s", "days", "GPU hours"]
    lines += ["", tabulate(table, headers=headers, disable_numparse=True, stralign="right"), ""]
    limits = plan.limits()
    lines += limits or [f"up to {MOST_GPUS} GPUs nothing speaks against data parallel"]
    facts = {
        "parameters": plan.memory.shape.parameters,
        "flops_per_token": plan.flops,
        "memory": asdict(memory) | {"phases": dict(memory.phases), "peak": memory.peak, "room": plan.room},
        "communication": sent,
        "largest_micro_batch": largest,
        "plan": asdict(row),
        "scaling": [asdict(r) for r in powers],
        "limits": limits,
    }
    return "\n".join(lines), facts


def parse_gpus(text: str) -> tuple[int, str]:
    """`8xH100` -> (8, "H100"). Raises ValueError with what is allowed."""
    match = re.fullmatch(r"(\d+)x(.+)", text)
    if not match or match[2] not in GPUS or not 1 <= int(match[1]) <= MOST_GPUS:
        raise ValueError(
            f"--gpus is '{text}', but it must be a number from 1 to {MOST_GPUS}, an x and one of "
            f"{', '.join(GPUS)}: 8xH100"
        )
    return int(match[1]), match[2]


def sized_for(command: Command, ranks: int) -> tuple[dict[str, Any], tuple[int, int], str | None]:
    """The DeepSpeed config for `ranks`, what its batch sizes were, and a sentence if they had to change."""
    load = load_ds_config
    try:
        config = load(command.deepspeed_config, command.ds_overrides, ranks)
        return config, (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]), None
    except ValueError as error:
        if "do not divide" not in str(error):
            raise
        refusal = str(error)
    sizes = json.loads(command.deepspeed_config.read_text()) | {
        key: int(value) for key, value in command.ds_overrides.items() if key.startswith("train_")
    }
    asked = sizes["train_batch_size"]
    batch = -(-asked // ranks) * ranks
    a_rank = batch // ranks
    largest = sizes.get("train_micro_batch_size_per_gpu", a_rank)
    micro = next(m for m in range(min(largest, a_rank), 0, -1) if a_rank % m == 0)
    overrides = command.ds_overrides | {
        "train_batch_size": str(batch),
        "train_micro_batch_size_per_gpu": str(micro),
        "gradient_accumulation_steps": str(a_rank // micro),
    }
    note = (
        f"train.py would refuse this: {refusal}. The plan is for --ds.train_batch_size {batch} "
        f"--ds.train_micro_batch_size_per_gpu {micro}"
    )
    return load(command.deepspeed_config, overrides, ranks), (asked, largest), note


def main(argv: list[str]) -> int:
    """Print the plan; returns the exit status."""
    own = {"--gpus": "", "--mfu": str(MFU), "--json": ""}
    rest = []
    words = iter(argv)
    for word in words:
        key, equals, value = word.partition("=")
        if key in own:
            own[key] = value if equals else next(words, "")
        else:
            rest.append(word)
    try:
        if not own["--gpus"]:
            raise ValueError(
                f"--gpus is missing: a number, an x and one of {', '.join(GPUS)}, such as 8xH100"
            )
        ranks, name = parse_gpus(own["--gpus"])
        try:
            mfu = float(own["--mfu"])
        except ValueError:
            mfu = 0.0
        if not 0 < mfu <= 1:
            raise ValueError(f"--mfu is '{own['--mfu']}', but it must be above 0 and at most 1")
        command, recipe = recipe_of(rest)
        ds_config, asked, note = sized_for(command, ranks)
        plan = Plan(recipe, ds_config, asked, GPUS[name], mfu)
        text, facts = describe(plan, name, ranks, command.recipe_file)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if note:
        print(note)
    print(text)
    print(
        f"Assumed, not measured: the MFU; {NODE} GPUs a node; nominal links at 70 %; blocks uncompiled, "
        "which keep more. See docs/plan.md."
    )
    if own["--json"]:
        Path(own["--json"]).write_text(json.dumps(facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
