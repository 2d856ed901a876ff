"""A recipe on any number of GPUs of a kind: what fits, how fast it is, and where data parallel ends."""

from dataclasses import dataclass

from torch._subclasses.fake_tensor import FakeTensorMode

from model import GPT, flops_per_token

from ..config import DeepSpeedConfig, Recipe
from ..engine.hardware import GPU
from .accounting import Pauses, StepTime, communication, pauses, step_time
from .attempt import RESERVE
from .command import MOST_GPUS
from .memory import MemoryModel

SLOW_NETWORK = 0.2
"""A larger share of a step than this in communication, and data parallel wastes its GPUs."""
FEW_TOKENS = 4096
"""Tokens of a micro-batch below which products are too small to keep a GPU busy: a rule of thumb."""


@dataclass(frozen=True)
class Row:
    """A number of GPUs: batch sizes in sequences, bytes per rank, seconds, tokens per second of all ranks.

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
        deepspeed: how it is trained, with batch sizes that divide.
        asked: `train_batch_size` and micro-batch before they were made to divide.
        gpu: what each rank is.
        mfu: model FLOPs utilisation of the compute alone.
    """

    def __init__(
        self, recipe: Recipe, deepspeed: DeepSpeedConfig, asked: tuple[int, int], gpu: GPU, mfu: float
    ) -> None:
        self.recipe, self.deepspeed, self.gpu, self.mfu = recipe, deepspeed, gpu, mfu
        self.batch, self.micro_batch = asked
        with FakeTensorMode():
            self.flops = flops_per_token(GPT(recipe.model))
        self.memory = MemoryModel(
            recipe.model,
            deepspeed,
            compiled=recipe.train.compile,
            budget=recipe.train.activation_memory_budget,
            document_mask=recipe.data.document_mask,
        )
        self.usable = int((1 - RESERVE) * gpu.memory)

    def fits(self, ranks: int, micro_batch: int, accumulation: int) -> bool:
        """Whether a rank's peak stays below the GPU's memory less the reserve."""
        return self.memory.of(ranks, micro_batch, accumulation).peak <= self.usable

    def largest_micro_batch(self, ranks: int, most: int = 4096) -> int:
        """The largest that fits, 0 if none does."""
        low, high = 0, 1
        while high <= most and self.fits(ranks, high, accumulation=2):
            low, high = high, 2 * high
        high = min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(ranks, middle, accumulation=2) else (low, middle)
        return low

    def row(self, ranks: int, micro_batch: int | None = None) -> Row:
        """`ranks` GPUs, with the given micro-batch or the largest that fits and divides, the JSON's at most.

        A global batch that the ranks do not divide is rounded up to one that they do.
        """
        batch = -(-self.batch // ranks) * ranks
        of_a_rank = batch // ranks
        if micro_batch is None:
            wanted = min(self.micro_batch, of_a_rank)
            divisors = [size for size in range(wanted, 0, -1) if of_a_rank % size == 0]
            micro_batch = next((m for m in divisors if self.fits(ranks, m, of_a_rank // m)), 1)
        accumulation = of_a_rank // micro_batch
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
            fits=peak <= self.usable,
            communication_bytes=sum(communication(self.memory, ranks, accumulation).values()),
            communication_share=time.communicate / time.whole,
            steps=steps,
            step_s=time.whole,
            tokens_per_s=tokens / time.whole,
            days=steps * time.whole / 86400,
            gpu_hours=steps * time.whole * ranks / 3600,
        )

    def pauses(self, row: Row) -> Pauses:
        """What validations and checkpoints take of a run on so many GPUs."""
        share = row.communication_share
        time = StepTime(row.step_s * (1 - share), row.step_s * share)
        return pauses(self.memory, self.recipe, time, self.flops, self.gpu, row.gpus, self.mfu, row.steps)

    def rows(self) -> list[Row]:
        """1, 2, 4, ... GPUs, up to `MOST_GPUS`."""
        return [self.row(2**power) for power in range(MOST_GPUS.bit_length())]

    def limits(self, rows: list[Row]) -> list[str]:
        """Where data parallel of this kind stops being the right tool, a sentence for each reason."""
        name = f"ZeRO-{self.memory.stage} data parallel"
        found = []
        if first := next((row for row in rows if row.gpus > self.batch), None):
            found.append(
                (
                    first.gpus,
                    f"has more GPUs than train_batch_size {self.batch} has sequences: a larger batch changes "
                    "the experiment, so split the model instead (tensor or pipeline parallel, not in "
                    "NormLab)",
                )
            )
        if first := next((row for row in rows if row.communication_share > SLOW_NETWORK), None):
            found.append(
                (
                    first.gpus,
                    f"spends {first.communication_share:.0%} of a step on communication, which data parallel "
                    "cannot shrink: the bytes that a rank sends stay the same while its work becomes less",
                )
            )
        if first := next((row for row in rows if self._starves(row)), None):
            found.append(
                (
                    first.gpus,
                    f"leaves a GPU {first.micro_batch * self.recipe.model.block_size:,} tokens per step, too "
                    "few to keep it busy: it will not reach that MFU",
                )
            )
        said = [f"from {gpus} GPUs on {name} {reason}" for gpus, reason in sorted(found)]
        if not any(row.fits for row in rows):
            said.append(
                f"{name} does not fit on any number of these GPUs, even at micro-batch 1: split more "
                "(ZeRO-2, ZeRO-3), recompute (activation_checkpointing) or offload (offload_optimizer)"
            )
        elif not rows[0].fits:
            first = next(row for row in rows if row.fits)
            said.append(f"below {first.gpus} GPUs it does not fit even at micro-batch {rows[0].micro_batch}")
        return said

    def _starves(self, row: Row) -> bool:
        tokens = row.micro_batch * self.recipe.model.block_size
        return row.gpus <= self.batch and row.accumulation == 1 and tokens < FEW_TOKENS
