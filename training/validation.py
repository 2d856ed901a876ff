"""Validation loss: every token of the fixed validation set, scored once, and the floors it is read beside."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from data import Corpus, DataConfig, LaneLoader, Tokenizer, ValidationSet, document_ids
from model import IGNORED_TARGET
from model.files import write_whole

from .samples import Sample, sample_texts

if TYPE_CHECKING:
    from .config import DeepSpeedConfig, Recipe


@torch.no_grad()
def token_losses(
    model: Any,
    validation: ValidationSet,
    block_size: int,
    batch: int,
    device: torch.device,
    document_mask: bool = False,
    before_batch: Callable[[], None] = lambda: None,
    full_batches: bool = False,
) -> np.ndarray:
    """The loss of each target of the validation set, (N,) float64 in nats, on every rank.

    The ranks share the blocks; `model` is a GPT or an engine around one, put into evaluation mode and back.
    With `document_mask` no document sees another. Every rank calls `before_batch` and the model as often,
    as one that has no blocks left computes its first again: under ZeRO-3 the others would wait for it.
    With `full_batches` so is a batch filled: then all have one shape.
    """
    inputs, targets = validation.blocks(block_size)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    losses = torch.zeros(targets.shape, dtype=torch.float64, device=device)
    mine = list(range(rank, len(targets), world_size))
    was_training = model.training
    model.eval()
    try:
        for start in range(0, -(-len(targets) // world_size), batch):
            before_batch()
            rows = scored = mine[start : start + batch]
            rows = rows + (mine[:1] or [0]) * ((batch if full_batches else 1) - len(rows))
            of_batch = inputs[rows].to(device)
            documents = document_ids(of_batch, int(validation.tokens[0])) if document_mask else None
            _, loss = model(of_batch, targets[rows].to(device), reduction="none", documents=documents)
            losses[scored] = loss[: len(scored)].double()
    finally:
        model.train(was_training)
    if world_size > 1:
        dist.all_reduce(losses)
    return losses[targets.to(device) != IGNORED_TARGET].cpu().numpy()


def validate(
    engine: Any,
    step: int,
    validation: ValidationSet,
    tokenizer: Tokenizer,
    recipe: "Recipe",
    ds: "DeepSpeedConfig",
    device: torch.device,
    between: Callable[[], None],
) -> tuple[np.ndarray, list[Sample]]:
    """A run's `token_losses`, in its blocks and micro-batches, and its `sample_texts`. All ranks call it.

    The designs see `step`, the steps that were taken: the one under which a checkpoint would be written now.
    `between` is called before each forward; what it raises, on all ranks, ends the validation.
    """
    engine.module.set_training_step(step)
    losses = token_losses(
        engine,
        validation,
        recipe.model.block_size,
        ds.micro_batch,
        device,
        recipe.data.document_mask,
        between,
        full_batches=recipe.train.compile,
    )
    return losses, sample_texts(engine, tokenizer, recipe.eval.sample_text, device, between)


def document_losses(losses: np.ndarray, validation: ValidationSet) -> pa.Table:
    """Per document: its number, target tokens, UTF-8 bytes of text, and the sum of its losses in nats."""
    tokens = np.bincount(validation.document)
    sums = np.bincount(validation.document, weights=losses)
    return pa.table(
        {"document": np.arange(len(tokens)), "tokens": tokens, "bytes": validation.bytes, "loss": sums}
    )


def write_document_losses(path: Path, losses: np.ndarray, validation: ValidationSet) -> None:
    """Write `document_losses` as parquet, for paired comparisons between runs."""
    write_whole(path, partial(pq.write_table, document_losses(losses, validation)))


def bits_per_byte(losses: np.ndarray, validation: ValidationSet) -> float:
    """The losses of all targets, (N,) in nats, in bits for each byte of UTF-8 text.

    Unlike nats per token it compares models with different tokenizers. The `eot` that closes a document
    counts with what it costs, and as 0 bytes.
    """
    return float(losses.sum() / np.log(2) / validation.bytes.sum())


def loss_floors(
    corpus: Corpus, validation: ValidationSet, config: DataConfig, block_size: int
) -> dict[str, float]:
    """What models that know nothing of the text score on the validation set, nats per token.

    `uniform` guesses every token alike, as an untrained model does; `unigram` knows how often each token
    comes. The training tokens are read in this process, from the beginning of the run.
    """
    vocab_size = corpus.tokenizer.vocab_size
    loader = LaneLoader(corpus, replace(config, workers=0), block_size=block_size, micro_batch=16)
    return {
        "uniform": float(np.log(vocab_size)),
        "unigram": unigram_loss(_first_epoch(loader), validation, vocab_size),
    }


def unigram_loss(
    batches: Iterator[Any], validation: ValidationSet, vocab_size: int, sample: int = 2**20
) -> float:
    """Nats per token that a unigram model scores on the validation set.

    Its probabilities are the frequencies among the first `sample` training tokens, add-one smoothed;
    `batches` yields (tokens, cursors) as the training loop gets them; all of them if they end before that.
    """
    counts = np.ones(vocab_size)
    for tokens, _ in batches:
        counts += np.bincount(tokens.numpy().ravel(), minlength=vocab_size)
        if counts.sum() >= sample + vocab_size:
            break
    return float(-np.log(counts / counts.sum())[validation.tokens[1:]].mean())


def _first_epoch(batches: Iterator[Any]) -> Iterator[Any]:
    """What comes before a lane begins again, or before the data cannot be read on: the loop will say so."""
    with suppress(ValueError, OSError):
        for tokens, cursors in batches:
            yield tokens, cursors
            if any(cursor.epoch for cursor in cursors.values()):
                return
