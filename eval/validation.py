"""Validation loss: every token of the fixed validation set, scored once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from data import ValidationSet


@torch.no_grad()
def token_losses(
    model: Any, validation: ValidationSet, block_size: int, batch: int, device: torch.device
) -> np.ndarray:
    """The loss of each target of the validation set, (N,) float64 in nats, on every rank.

    The ranks share the blocks; `model` is a GPT or an engine around one, put into evaluation mode and back.
    """
    inputs, targets = validation.blocks(block_size)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    losses = torch.zeros(targets.shape, dtype=torch.float64, device=device)
    mine = list(range(rank, len(targets), world_size))
    was_training = model.training
    model.eval()
    for start in range(0, len(mine), batch):
        rows = mine[start : start + batch]
        _, loss = model(inputs[rows].to(device), targets[rows].to(device), reduction="none")
        losses[rows] = loss.double()
    model.train(was_training)
    if world_size > 1:
        dist.all_reduce(losses)
    return losses[targets.to(device) != -1].cpu().numpy()


def document_losses(losses: np.ndarray, validation: ValidationSet) -> pa.Table:
    """Per document: its number, its target tokens, and the sum of their losses in nats."""
    tokens = np.bincount(validation.document)
    sums = np.bincount(validation.document, weights=losses)
    return pa.table({"document": np.arange(len(tokens)), "tokens": tokens, "loss": sums})


def write_document_losses(path: Path, losses: np.ndarray, validation: ValidationSet) -> None:
    """Write `document_losses` as parquet, for paired comparisons between runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(document_losses(losses, validation), partial)
    partial.replace(path)


def uniform_loss(vocab_size: int) -> float:
    """The loss of guessing every token alike, in nats: the floor that an untrained model starts at."""
    return float(np.log(vocab_size))


def unigram_loss(
    batches: Iterator[Any], validation: ValidationSet, vocab_size: int, sample: int = 2**20
) -> float:
    """Nats a token that a unigram model scores on the validation set.

    Its probabilities are the frequencies among the first `sample` training tokens, add-one smoothed;
    `batches` yields (tokens, cursors) as the training loop gets them.
    """
    counts = np.ones(vocab_size)
    while counts.sum() < sample + vocab_size:
        tokens, _ = next(batches)
        counts += np.bincount(tokens.numpy().ravel(), minlength=vocab_size)
    return float(-np.log(counts / counts.sum())[validation.tokens[1:]].mean())
