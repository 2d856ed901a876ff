"""What `bench_engine.py` measures side by side: NormLab's step, and what people run instead."""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model import GPT, GPTConfig, flops_per_token
from training.config import read_deepspeed_config
from training.engine.build import build_engine, parameter_groups
from training.engine.compilation import compile_blocks
from training.engine.cpu_bf16 import bf16_arithmetic
from training.engine.ranks import join_ranks

ROOT = Path(__file__).resolve().parents[1]
RATE = 1e-3
Batch = tuple[torch.Tensor, torch.Tensor]


class PlainLoss(nn.Module):
    """A GPT whose loss comes from all logits in fp32, as nanoGPT's does."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, idx: torch.Tensor, targets: torch.Tensor) -> tuple[None, torch.Tensor]:
        """(B, T), (B, T) -> the mean loss."""
        logits, _ = self.gpt(idx)
        assert logits is not None
        return None, F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-1)


class Bench:
    """What all contenders share on this rank."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = join_ranks().device
        self.ranks = dist.get_world_size()
        shape = {name: getattr(options, name) for name in ("n_layer", "n_head", "n_embd", "block_size")}
        self.config = GPTConfig(**shape)
        with torch.device("meta"):
            self.flops_per_token = flops_per_token(GPT(self.config))
        self.sequences = options.micro_batch * options.accumulation * self.ranks
        overrides = {
            "train_batch_size": str(self.sequences),
            "train_micro_batch_size_per_gpu": str(options.micro_batch),
            "optimizer.params.lr": str(RATE),
        }
        self.deepspeed = read_deepspeed_config(ROOT / "ds_configs" / "zero1_bf16.json", overrides, self.ranks)

    def gpt(self) -> GPT:
        """The model, with the same weights each time."""
        torch.manual_seed(1)
        return GPT(self.config).to(self.device)

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step."""
        generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
        size = (self.options.accumulation, self.options.micro_batch, self.config.block_size + 1)
        tokens = torch.randint(0, 50257, size, generator=generator).to(self.device)
        return [(micro_batch[:, :-1], micro_batch[:, 1:]) for micro_batch in tokens]


Turn = tuple[list[float], float]
"""Seconds of each counted step, and the loss after the last."""


def timed(bench: Bench, step: Callable[[int], torch.Tensor]) -> Turn:
    """Make `options.steps` steps, and one before them that is not counted."""
    seconds = []
    for number in range(bench.options.steps + 1):
        dist.barrier()
        started = time.perf_counter()
        loss = step(number).item()
        dist.barrier()
        seconds.append(time.perf_counter() - started)
    return seconds[1:], loss


def normlab(bench: Bench, compiled: bool = True, plain_loss: bool = False) -> Turn:
    """NormLab's engine: ZeRO-1, bf16."""
    gpt = bench.gpt()
    if compiled:
        compile_blocks(gpt, print)
    engine = build_engine(PlainLoss(gpt) if plain_loss else gpt, bench.deepspeed)

    def step(number: int) -> torch.Tensor:
        with bf16_arithmetic():
            for idx, targets in bench.batches(number):
                _, loss = engine(idx, targets)
                engine.backward(loss)
                engine.step()
        return loss

    turn = timed(bench, step)
    engine.destroy()
    return turn


def ddp(bench: Bench, autocast: bool, compiled: bool) -> Turn:
    """nanoGPT's loop: DDP, AdamW on fp32 weights, clipping, the logits whole."""
    module: Any = PlainLoss(bench.gpt())
    model = DistributedDataParallel(torch.compile(module) if compiled else module)
    groups = parameter_groups(module, weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)

    def step(number: int) -> torch.Tensor:
        batches = bench.batches(number)
        for i, (idx, targets) in enumerate(batches, start=1):
            with bf16_arithmetic(), nullcontext() if i == len(batches) else model.no_sync():
                with torch.autocast(bench.device.type, torch.bfloat16, enabled=autocast):
                    _, loss = model(idx, targets)
                (loss / len(batches)).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return timed(bench, step)


def huggingface(bench: Bench) -> Turn:
    """Hugging Face's Trainer and GPT-2 with the same DeepSpeed JSON, from the end of a step to the next's."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize(bench.device)
            ends.append(time.perf_counter())

    steps, rank = bench.options.steps + 1, dist.get_rank()
    rows: list[torch.Tensor] = [torch.empty(0)] * (steps * bench.sequences)
    for step in range(steps):  # Trainer deals its micro-batches to the ranks in turn
        for number, (idx, targets) in enumerate(bench.batches(step)):
            tokens = torch.cat([idx, targets[:, -1:]], dim=1).cpu()
            place = ((step * bench.options.accumulation + number) * bench.ranks + rank) * len(tokens)
            rows[place : place + len(tokens)] = list(tokens)
    blank = torch.zeros(bench.config.block_size, dtype=torch.long)
    data = [
        {"input_ids": row[:-1], "labels": row[:-1]} if len(row) else {"input_ids": blank, "labels": blank}
        for row in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            deepspeed=dict(bench.deepspeed.raw),
            per_device_train_batch_size=bench.options.micro_batch,
            gradient_accumulation_steps=bench.options.accumulation,
            max_steps=steps,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            weight_decay=0.1,
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=bench.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        shape = bench.config
        torch.manual_seed(1)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=shape.vocab_size,
                n_positions=shape.block_size,
                n_embd=shape.n_embd,
                n_layer=shape.n_layer,
                n_head=shape.n_head,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                resid_pdrop=0.0,
                use_cache=False,
            )
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Clock()])
        with bf16_arithmetic():
            loss = trainer.train().training_loss
        trainer.accelerator.free_memory()
        engine: Any = trainer.model_wrapped
        engine.destroy()
    return [end - begin for begin, end in pairwise(ends)], loss


CONTENDERS: dict[str, Callable[[Bench], Turn]] = {
    "NormLab": normlab,
    "NormLab, uncompiled, plain loss": partial(normlab, compiled=False, plain_loss=True),
    "DDP fp32": partial(ddp, autocast=False, compiled=False),
    "DDP fp32, model compiled": partial(ddp, autocast=False, compiled=True),
    "DDP bf16 autocast": partial(ddp, autocast=True, compiled=False),
    "DDP bf16 autocast, model compiled": partial(ddp, autocast=True, compiled=True),
    "HF Trainer, same JSON": huggingface,
}
OURS = list(CONTENDERS)[:2]


def synchronize(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
