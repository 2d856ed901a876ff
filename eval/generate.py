"""Text that a model writes: `python -m eval.generate RUN_OR_FOLDER --prompt "..." [--prompt "..."]`."""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import UserError, print_error
from model.redaction import redact_output
from model.values import FROM_0, FROM_1, Range
from training.checkpoints.found import find_checkpoint
from training.run.reader import is_model_folder, read_recipe, run_and_step
from training.run.tokenizer import read_tokenizer, tokenizer_note

if TYPE_CHECKING:
    from data import Tokenizer

SEPARATOR = "-" * 40
"""Stands between the texts of several prompts."""
RANGES = {
    "temperature": FROM_0,
    "max_tokens": FROM_1,
    "top_k": FROM_1,
    "seed": Range(at_least=-(2**63), below=2**63),  # what torch draws with
}
"""Of the command's numbers."""


def main(argv: list[str]) -> int:
    """Print the texts; returns the exit status: 0 when done, 2 where something about the command is wrong."""
    options = parse(argv)
    try:
        check(options)
        texts = generate(options)
    except (UserError, OSError) as error:
        return print_error(error)
    print(f"\n{SEPARATOR}\n".join(texts))
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; `--help` comes before anything heavy is imported."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.generate",
        description="Print prompts and what a model writes after them, with its fp32 weights. A text ends at "
        "the end of a document or after max_tokens.",
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="RUN_OR_FOLDER",
        help="a run folder, one of its checkpoints' folders, or a model in Hugging Face's form",
    )
    parser.add_argument(
        "--prompt", action="append", required=True, help="what the text begins with; may be given again"
    )
    parser.add_argument("--max_tokens", type=int, default=100, metavar="N", help="at most (default: 100)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="T",
        help="divides the logits; 0 takes the likeliest token each time (default: 0.8)",
    )
    parser.add_argument("--top_k", type=int, metavar="K", help="draw among the K likeliest tokens only")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws (default: 0)")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint's step (default: the last one)")
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> None:
    """Raise UserError for whatever can be said before a model is loaded."""
    for name, bounds in RANGES.items():
        if (value := getattr(options, name)) is not None and not bounds.holds(value):
            raise UserError(f"--{name} is {value}, but it must be a number {bounds}")
    if not is_model_folder(options.source):
        run_dir, step = run_and_step(options.source)
        read_recipe(run_dir)
        _, options.step = find_checkpoint(run_dir, step if options.step is None else options.step)
        print(f"note: step {options.step} of {run_dir}", file=sys.stderr)


def generate(options: argparse.Namespace) -> list[str]:
    """Each prompt with what the model writes after it. Raises UserError as `load_weights` does."""
    import torch

    from training.engine.weights import load_weights
    from training.samples import continue_text

    tokenizer = tokenizer_of(options.source)
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints what it reads
        gpt = load_weights(options.source, options.step)
    gpt.to("cuda" if torch.cuda.is_available() else "cpu")
    samples = [
        continue_text(
            gpt,
            tokenizer,
            prompt,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed,
        )
        for prompt in options.prompt
    ]
    return [sample.prompt + sample.text for sample in samples]


def tokenizer_of(source: Path) -> "Tokenizer":
    """The tokenizer of a run, or that of a folder's files. Raises UserError where there is none."""
    if not is_model_folder(source):
        run_dir, _ = run_and_step(source)
        if note := tokenizer_note(run_dir):
            print(f"note: {note}", file=sys.stderr)
        return read_tokenizer(run_dir)
    from .hf_tokenizer import FILES, read_tokenizer_of

    tokenizer = read_tokenizer_of(source)
    if tokenizer is None:
        raise UserError(f"{source} has no tokenizer: it holds none of {', '.join(FILES)}")
    return tokenizer


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
