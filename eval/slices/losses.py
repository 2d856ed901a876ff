"""The losses of all validation tokens, summed by slice and document: slices.parquet of a checkpoint.

Three kinds of slices, and every target is in one bucket of each:

- `position`: of the target's input in its block, from 0. At position p the model has read p + 1 tokens of the
  block, or with a document mask those of them that are the document's.
- `frequency`: how often the target token occurs in the validation set, as a target.
- `length`: the target tokens of its document, the end of text that closes it included.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data import ValidationSet
from model.files import write_whole
from training.run.reader import evaluation_folder, section_of
from training.validation import token_losses

from ..scoring.lm import TOKENS_PER_BATCH
from ..scoring.windows import validation_set
from ..statistics.crossed import effects
from .comparison import BUCKET, bucket_title

if TYPE_CHECKING:
    from model import GPT
    from training.run.console import Console

GROWTH = {"position": 2, "frequency": 10, "length": 4}
"""By kind, how many times the lowest value of a bucket the next one begins at: 1, 2, 4, ... for position."""


def write_slices(gpt: "GPT", step: int, like: Path, out: Path, console: "Console") -> None:
    """Score the validation set of the run `like` and write `out`/eval/step_*/slices.parquet, if not there.

    The model is scored where it lies, in the run's blocks (or its own where they are shorter) and with its
    document mask.

    Raises UserError and OSError as `validation_set` does.
    """
    file = slices_file(out, step)
    if not file.is_file():
        validation = validation_set(like)
        block_size = min(section_of(like, "model").block_size, gpt.config.block_size)
        document_mask = section_of(like, "data").document_mask
        device = next(gpt.parameters()).device
        console.say(f"scoring {len(validation.document):,} validation tokens in blocks of {block_size}")
        batch = max(1, TOKENS_PER_BATCH["cpu" if device.type == "cpu" else "cuda"] // block_size)
        losses = token_losses(gpt, validation, block_size, batch, device, document_mask)
        write_whole(file, partial(pq.write_table, slice_losses(losses, validation, block_size)))
    console.say(format_slices(pd.read_parquet(file)))
    console.say(f"slices in {file}")


def slices_file(run_dir: Path, step: int) -> Path:
    """Where the slices of a run's checkpoint lie."""
    return evaluation_folder(run_dir, step) / "slices.parquet"


def slice_losses(losses: np.ndarray, validation: ValidationSet, block_size: int) -> pa.Table:
    """The losses of all targets, (N,) in nats, summed by slice and document.

    A row for each bucket that a document has tokens in: `kind`, `low` and `high` (the bucket's lowest and
    highest value), `document`, `tokens` and `loss` (nats, the sum over those tokens).
    """
    targets = validation.tokens[1:]
    positions = np.arange(len(targets)) % block_size
    frequencies = np.bincount(targets)[targets]
    lengths = np.bincount(validation.document)[validation.document]
    parts = [
        _by_document("position", positions, losses, validation.document, highest=block_size - 1),
        _by_document("frequency", frequencies, losses, validation.document),
        _by_document("length", lengths, losses, validation.document),
    ]
    return pa.concat_tables(parts)


def _by_document(
    kind: str, values: np.ndarray, losses: np.ndarray, document: np.ndarray, highest: int | None = None
) -> pa.Table:
    """The rows of a kind, from the value, loss and document of each target; no value is above `highest`."""
    lows = [0, 1]
    while lows[-1] <= values.max():
        lows.append(lows[-1] * GROWTH[kind])
    bucket = np.searchsorted(lows, values, side="right") - 1
    key = bucket * (int(document.max()) + 1) + document
    tokens, sums = np.bincount(key), np.bincount(key, weights=losses)
    there = np.flatnonzero(tokens)
    bucket, document = np.divmod(there, int(document.max()) + 1)
    high = np.array(lows[1:])[bucket] - 1
    return pa.table(
        {
            "kind": [kind] * len(there),
            "low": np.array(lows)[bucket],
            "high": high if highest is None else high.clip(max=highest),
            "document": document,
            "tokens": tokens[there],
            "loss": sums[there],
        }
    )


def format_slices(slices: pd.DataFrame) -> str:
    """A line per bucket: kind, values, tokens, nats per token, and its 95 % interval over documents."""
    lines = []
    for (kind, low, high), rows in slices.groupby(["kind", *BUCKET], sort=False):
        tokens = int(rows["tokens"].sum())
        line = (
            f"{kind:<10}{bucket_title(low, high):>16}{tokens:>12,} tokens{rows['loss'].sum() / tokens:>9.4f}"
        )
        if len(rows) > 1:
            losses = rows["loss"].to_numpy()
            (effect,) = effects(np.stack([0 * losses, losses])[:, None], rows["tokens"].to_numpy())
            low, high = effect.interval()
            line += f" [{low:.4f}, {high:.4f}]"
        lines.append(line)
    return "\n".join(lines)
