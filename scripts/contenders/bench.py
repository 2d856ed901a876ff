"""What all contenders share: the model, its first weights, the tokens of each step, the clock and the log."""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from model import GPT, GPTConfig, flops_per_token
from model.files import append_text
from training.config import read_deepspeed_config
from training.engine.ranks import Ranks

from .options import SHAPE

ROOT = Path(__file__).resolve().parents[2]
RATE = 1e-3
"""The learning rate of every step."""
WEIGHT_DECAY = 0.1
Batch = tuple[torch.Tensor, torch.Tensor]


class Turn(NamedTuple):
    """What a contender has done."""

    seconds: float
    """Of a step, the first one left out."""
    cpu_seconds: float
    """What this rank's threads computed in that time, which other processes do not lengthen."""
    loss: float
    """Nats per token over the last global batch, before the weights moved."""
    grad_norm: float
    """Of the last step's gradient before clipping, averaged over the global batch."""


class Bench:
    """A setting that contenders are measured in, on this rank.

    The tokens of a step are the same at each micro-batch, and rare ones are rare, so that the loss falls at
    once where weights move as they should.

    Args:
        options: the command line's.
        micro_batch: sequences that go through the model together.
        ranks: who trains.
    """

    def __init__(self, options: argparse.Namespace, micro_batch: int, ranks: Ranks) -> None:
        self.ranks, self.device, self.steps = ranks, ranks.device, options.steps
        self.micro_batch, self.accumulation = micro_batch, options.sequences // micro_batch
        self.config = GPTConfig(**{name: getattr(options, name) for name in SHAPE})
        with torch.device("meta"):
            self.flops_per_token = flops_per_token(GPT(self.config))
        sequences = options.sequences * ranks.world_size
        self.tokens_per_step = sequences * self.config.block_size
        overrides = {
            "train_batch_size": str(sequences),
            "train_micro_batch_size_per_gpu": str(micro_batch),
            "optimizer.params.lr": str(RATE),
            "timers.throughput": '{"enabled": false}',  # it synchronises a GPU twice per micro-batch
        }
        file = ROOT / "ds_configs" / "zero1_bf16.json"
        self.deepspeed = read_deepspeed_config(file, overrides, ranks.world_size)
        generator = torch.Generator().manual_seed(1000 + ranks.rank)
        size = (self.steps + 1, options.sequences, self.config.block_size + 1)
        tokens = torch.rand(size, generator=generator).pow(4) * self.eot
        self.tokens = tokens.int()  # on the CPU, as a loader gives them
        if self.device.type == "cuda":
            self.tokens = self.tokens.pin_memory()

    @property
    def eot(self) -> int:
        """The token that ends a document, which none does here."""
        return self.config.vocab_size - 1

    def gpt(self, kind: type[GPT] = GPT) -> GPT:
        """The model, with the same weights each time."""
        torch.manual_seed(1)
        return kind(self.config).to(self.device)

    def batches(self, step: int) -> Iterator[Batch]:
        """Inputs and targets of this rank's micro-batches of a step, each (B, T)."""
        for micro_batch in self.tokens[step].split(self.micro_batch):
            tokens = micro_batch.to(self.device, non_blocking=True).long()
            yield tokens[:, :-1], tokens[:, 1:]

    def loader(self) -> "Loader":
        """All of this rank's micro-batches in turn, as training takes them."""
        return Loader(self.tokens.flatten(0, 1).split(self.micro_batch))

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def mean_of_ranks(self, loss: float) -> float:
        """The mean of what each rank has. All ranks call it."""
        losses = torch.tensor(loss, dtype=torch.float64, device=self.device)
        dist.all_reduce(losses)
        return losses.item() / self.ranks.world_size


class Loader:
    """Gives micro-batches, each (B, T + 1), with where they end, like the loader of a run."""

    def __init__(self, micro_batches: tuple[torch.Tensor, ...]) -> None:
        self.bad: Counter[str] = Counter()
        self._next = iter(micro_batches)

    def __next__(self) -> tuple[torch.Tensor, dict[int, tuple[int, ...]]]:
        return next(self._next), {}


class PlainLoss(GPT):
    """A GPT whose loss comes from all logits in fp32, as nanoGPT's does."""

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None, *_: Any, **__: Any) -> Any:
        """(B, T), (B, T) -> no logits, and the mean loss."""
        assert targets is not None
        logits = self.lm_head(self.hidden(idx))
        return None, F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-1)


class Log:
    """A line for each step, as metrics.jsonl has; rank 0 writes."""

    def __init__(self, bench: Bench, folder: str) -> None:
        self._is_written = bench.ranks.rank == 0
        self._file = Path(folder) / "metrics.jsonl"

    def write(self, step: int, facts: Mapping[str, Any]) -> None:
        """What is known of a step that is over."""
        if self._is_written:
            append_text(self._file, json.dumps({"step": step, **facts}) + "\n")


def timed(bench: Bench, step: Callable[[int], Mapping[str, Any]]) -> Turn:
    """Make a step that does not count, and `bench.steps` that do, in one go.

    Args:
        bench: the setting.
        step: makes the step of that number, reads its loss, and gives what is logged of it: `loss`, the mean
            over this rank's part of the global batch or all of it, `grad_norm`, and anything else.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Log(bench, folder)
        log.write(0, step(0))
        bench.synchronize()
        dist.barrier()
        begun = clocks()
        for number in range(1, bench.steps + 1):
            facts = step(number)
            log.write(number, facts)
        bench.synchronize()
        dist.barrier()
        seconds, cpu_seconds = ((clocks() - begun) / bench.steps).tolist()
    return Turn(seconds, cpu_seconds, bench.mean_of_ranks(facts["loss"]), facts["grad_norm"])


def clocks() -> torch.Tensor:
    """Seconds of the wall's clock, and of this process's threads on the CPU: (2,)."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)
