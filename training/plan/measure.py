"""The micro-batch that fits a device and the one that is fastest there, found by making steps."""

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch
from tabulate import tabulate

from model.errors import UserError

from ..config import DeepSpeedConfig, Recipe
from .attempt import RESERVE, Failed, Measured, Started, attempt, free_memory
from .command import PlanRequest
from .memory import MemoryModel

TOO_LARGE = 1.05
"""A micro-batch whose peak is expected at so many times what there is is not tried."""
SLOWER = 0.97
"""Smaller micro-batches are tried until one has less than this share of the best tokens per second."""


@dataclass(frozen=True)
class Try:
    """A micro-batch that was tried.

    Attributes:
        micro_batch: sequences
        accumulation: micro-batches per step of the run
        planned: bytes at the peak, as the plan has them
        available: bytes that there were
        peak: bytes at the measured peak; None where they did not suffice
        tokens_per_s: of one rank, over a whole step of the run
    """

    micro_batch: int
    accumulation: int
    planned: int
    available: int
    peak: int | None = None
    tokens_per_s: float | None = None


class Measurement:
    """A recipe's steps on the device at hand, one rank of it, at any micro-batch that divides its batch.

    Args:
        recipe: the model, and how it is compiled.
        deepspeed: how it is trained.
        sequences: of a rank and step.
        limit: bytes that a process may have; None for what is free less a reserve.
    """

    def __init__(self, recipe: Recipe, deepspeed: DeepSpeedConfig, sequences: int, limit: int | None) -> None:
        self.recipe, self.deepspeed, self.sequences = recipe, deepspeed, sequences
        self.on_gpu = torch.cuda.is_available()
        if limit is None and not self.on_gpu:
            limit = int((1 - RESERVE) * free_memory())
        self.limit = limit
        self.memory = MemoryModel(
            recipe.model,
            deepspeed,
            "cuda" if self.on_gpu else "cpu",
            compiled=recipe.train.compile,
            budget=recipe.train.activation_memory_budget,
            document_mask=recipe.data.document_mask,
        )

    def planned(self, micro_batch: int) -> int:
        """Bytes at the peak of what `run` does."""
        return self.memory.of(1, micro_batch, self._accumulation(micro_batch)).peak

    def run(self, micro_batch: int) -> Try:
        """Make steps in a process of its own, which is ended where it takes more than the limit.

        Raises UserError or RuntimeError where a step fails for another reason than memory.
        """
        accumulation = self._accumulation(micro_batch)
        sizes = {
            "train_batch_size": micro_batch * accumulation,
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
        }
        sized = replace(self.deepspeed, raw={**self.deepspeed.raw, **sizes})
        said = self._said_by_process(sized)
        started = next((one for one in said if isinstance(one, Started)), None)
        failed = next((one for one in said if isinstance(one, Failed)), None)
        if failed or not started:
            text = failed.text if failed else "it ended before the model was built"
            if failed and not failed.refused:
                raise RuntimeError(f"a step at micro-batch {micro_batch} failed:\n{text}")
            raise UserError(f"a step at micro-batch {micro_batch} cannot be made: {text}")
        of_run = self.sequences // micro_batch
        tried = Try(micro_batch, of_run, self.planned(micro_batch), started.available)
        measured = next((one for one in said if isinstance(one, Measured)), None)
        if measured is None or measured.reserved > started.available:
            return tried
        seconds = of_run * measured.micro_batch_s + measured.optimizer_s
        tokens = self.sequences * self.recipe.model.block_size
        return replace(tried, peak=measured.peak, tokens_per_s=tokens / seconds)

    def _accumulation(self, micro_batch: int) -> int:
        """Of a try: two micro-batches show what gradients of the first one take beside the second."""
        return min(2, self.sequences // micro_batch)

    def _said_by_process(self, sized: DeepSpeedConfig) -> list[Any]:
        context = multiprocessing.get_context("spawn")  # a fork could not use the GPU
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=attempt, args=(theirs, self.recipe, sized, self.limit), daemon=True)
        process.start()
        theirs.close()
        said: list[Any] = []
        try:
            while True:
                if ours.poll(0.02):
                    said.append(ours.recv())
                elif not self.on_gpu and self.limit and _resident(process.pid) > self.limit:
                    process.kill()
        except EOFError:  # it has ended
            pass
        finally:
            process.kill()
            process.join()
        return said


def _resident(pid: int | None) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def search(
    sizes: Sequence[int],
    first: int,
    run: Callable[[int], Try],
    planned: Callable[[int], int],
) -> list[Try]:
    """Tries until the largest of `sizes` that fits is known, and whether a smaller one is faster.

    Peaks are expected to grow as the plan has them, which the first try corrects.

    Args:
        sizes: micro-batches in ascending order.
        first: the one of them to begin with.
        run: makes the steps of one.
        planned: bytes at its peak.
    """
    tried: list[Try] = []
    low, high, guess = -1, len(sizes), sizes.index(first)
    while high - low > 1:
        found = run(sizes[guess])
        tried.append(found)
        low, high = (guess, high) if found.peak is not None else (low, guess)
        largest = max((one for one in tried if one.peak), key=lambda one: one.micro_batch, default=None)
        if largest and largest.peak:
            scale = largest.peak / largest.planned
        else:  # twice what would have made the smallest of them fail
            scale = max(1.0, 2 * max(one.available / one.planned for one in tried))
        expected = {i: scale * planned(sizes[i]) / found.available for i in range(low + 1, high)}
        if largest and expected.get(low + 1, 0) > TOO_LARGE:
            break
        guess = max((i for i, share in expected.items() if share <= 1), default=low + 1)
    rates = {one.micro_batch: one.tokens_per_s for one in tried if one.tokens_per_s}
    smaller = max(rates, default=1)
    while rates and smaller > 1:
        smaller = min(sizes, key=lambda size: abs(size - smaller / 2))
        if smaller not in rates:
            tried.append(run(smaller))
            rates[smaller] = tried[-1].tokens_per_s or 0.0
        if rates[smaller] < SLOWER * max(rates.values()):
            break
    return sorted(tried, key=lambda one: one.micro_batch)


def measure(asked: PlanRequest, say: Callable[[str], None]) -> tuple[str, list[dict[str, Any]]]:
    """The tries of a request's micro-batches on the device at hand, in a table and as numbers.

    `say` is told of each when it is over. Raises UserError or RuntimeError as `Measurement.run` does.
    """
    sequences = asked.deepspeed.train_batch_size // asked.ranks
    tries = Measurement(asked.recipe, asked.deepspeed, sequences, asked.limit)
    sizes = [size for size in range(1, sequences + 1) if sequences % size == 0]

    def run(size: int) -> Try:
        found = tries.run(size)
        fast = f"{found.tokens_per_s:,.0f} tokens/s" if found.tokens_per_s else "does not fit"
        say(f"micro-batch {size}: {fast}")
        return found

    tried = search(sizes, asked.deepspeed.micro_batch, run, tries.planned)
    where = torch.cuda.get_device_name() if tries.on_gpu else f"this CPU, {torch.get_num_threads()} threads"
    return describe_tries(tried, where)


def describe_tries(tried: Sequence[Try], where: str) -> tuple[str, list[dict[str, Any]]]:
    """The table of what was tried and what to type, and the same as numbers."""
    rows = [
        [
            one.micro_batch,
            one.accumulation,
            f"{one.tokens_per_s:,.0f}" if one.tokens_per_s else "does not fit",
            f"{one.peak / 2**30:.2f} GiB" if one.peak else f"> {one.available / 2**30:.2f} GiB",
            f"{one.planned / 2**30:.2f} GiB",
            f"{one.planned / one.peak:.2f}" if one.peak else "",
        ]
        for one in tried
    ]
    headers = ["micro-batch", "accumulation", "tokens/s", "peak measured", "planned", "planned / measured"]
    lines = [
        f"measured on {where}, one rank of it:",
        tabulate(rows, headers=headers, disable_numparse=True, stralign="right"),
    ]
    fitting = [one for one in tried if one.tokens_per_s]
    if fitting:
        fastest = max(fitting, key=lambda one: one.tokens_per_s or 0)
        lines.append(
            f"the largest that fits and divides the batch is {fitting[-1].micro_batch}, the fastest "
            f"{fastest.micro_batch}: --ds.train_micro_batch_size_per_gpu {fastest.micro_batch}"
        )
    else:
        lines.append(
            "not even micro-batch 1 fits: split more (ZeRO-2, ZeRO-3), recompute (activation_checkpointing, "
            "or --train.activation_memory_budget 0.5) or offload (offload_optimizer)"
        )
    return "\n".join(lines), [asdict(one) for one in tried]
