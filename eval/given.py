"""Weights that no run here has trained, scored on a run's validation set, for the scorecard to read."""

from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import UserError
from model.files import write_json
from training.run.reader import read_json, read_recipe, section_of
from training.run.tokenizer import read_tokenizer

from .evidence.results import GIVEN_WEIGHTS

if TYPE_CHECKING:
    from data import Tokenizer
    from model import GPT
    from training.run.console import Console

STEP = 0
"""Where the results lie: given weights have taken no step here."""
PROBE = "The tides, élan and 2,048 ships:\n\tturn back <|endoftext|>"


def check_given(folder: Path, like: Path | None, out: Path, step: int | None) -> None:
    """What can be said before a model is loaded. Raises UserError."""
    if like is None:
        raise UserError(
            f"{folder} is a model without a run: --validation_like RUN names the run whose validation set, "
            "tokenizer and tasks it is scored on"
        )
    if step is not None:
        raise UserError(f"{folder} is one model: it has no step {step}")
    read_recipe(like)
    if (out / "recipe.yaml").is_file() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is a run folder or no folder at all: choose another --out")


def load_given(folder: Path, like: Path) -> "tuple[GPT, Tokenizer]":
    """The model of a folder in Hugging Face's form, and the tokenizer of `like`.

    Raises UserError where the two do not belong together.
    """
    from training.engine.weights import load_weights

    from .hf_tokenizer import read_tokenizer_of

    tokenizer, gpt = read_tokenizer(like), load_weights(folder)
    if gpt.config.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"{folder} has an embedding of {gpt.config.vocab_size} tokens, but {like} has tokenizer "
            f"{tokenizer.name} of {tokenizer.vocab_size}: --validation_like takes a run with its tokenizer"
        )
    theirs = read_tokenizer_of(folder)
    if theirs and theirs.encode(PROBE).tolist() != tokenizer.encode(PROBE).tolist():
        raise UserError(
            f"{folder} has another tokenizer than {like}, which has {tokenizer.name}: --validation_like "
            "takes a run with its tokenizer"
        )
    return gpt, tokenizer


def score_validation(
    gpt: "GPT", tokenizer: "Tokenizer", folder: Path, like: Path, out: Path, console: "Console"
) -> None:
    """Score the validation set of `like`, unless that was done, and write `out`/summary.json.

    It is cut into the run's blocks, with its document mask, and scored in fp32.

    Raises UserError where `out` has the evaluation of other weights, or on another validation set.
    """
    from model import variant_name
    from training.engine.weights import fingerprint
    from training.run.reader import evaluation_folder
    from training.validation import bits_per_byte, token_losses, write_document_losses

    from .scoring.lm import TOKENS_PER_BATCH
    from .scoring.windows import validation_set

    validation, shape = validation_set(like), gpt.config
    of_run = section_of(like, "model").block_size
    block_size = min(of_run, shape.block_size)
    document_mask = section_of(like, "data").document_mask
    is_about = {
        "weights_fingerprint": fingerprint(gpt.state_dict()),
        "val_fingerprint": validation.fingerprint,
        "block_size": block_size,
        "document_mask": document_mask,
    }
    summary = out / "summary.json"
    if summary.is_file():
        stored = read_json(summary)
        if different := [key for key, value in is_about.items() if stored.get(key) != value]:
            raise UserError(
                f"{out} holds another evaluation (its {different[0]} is another): choose another --out"
            )
        return
    device = next(gpt.parameters()).device
    if document_mask:
        gpt.check_document_mask()
    console.say(f"scoring {len(validation.document):,} validation tokens in blocks of {block_size}")
    if block_size < of_run:
        console.say(f"{like} has blocks of {of_run}, which {folder} cannot read: it sees less context")
    batch = max(1, TOKENS_PER_BATCH["cpu" if device.type == "cpu" else "cuda"] // block_size)
    losses = token_losses(gpt, validation, block_size, batch, device, document_mask)
    write_document_losses(evaluation_folder(out, STEP) / "validation.parquet", losses, validation)
    facts = {
        "status": GIVEN_WEIGHTS,
        "variant": variant_name(shape),
        "weights": str(folder),
        "validation_like": str(like),
        "model": f"{shape.n_layer}L {shape.n_head}H {shape.n_embd}d",
        "parameters": gpt.num_parameters(),
        "tokenizer": tokenizer.name,
        "step": STEP,
        "val_loss": float(losses.mean()),
        "val_bits_per_byte": bits_per_byte(losses, validation),
        "val_tokens": len(validation.document),
        "val_bytes": int(validation.bytes.sum()),
        "val_text_fingerprint": validation.text_fingerprint,
    }
    write_json(summary, facts | is_about)
    console.say(
        f"{folder}: validation loss {facts['val_loss']:.4f} nats per token, "
        f"{facts['val_bits_per_byte']:.4f} bits per byte"
    )
