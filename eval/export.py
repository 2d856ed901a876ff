"""A run's model in Hugging Face's form: `python -m eval.export RUN_DIR --out FOLDER [--step N]`."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import UserError
from model.redaction import redact_output
from training.checkpoints.found import find_checkpoint
from training.run.reader import read_recipe
from training.run.tokenizer import read_tokenizer, tokenizer_note

from .command import checkpoint_parser, run_job
from .tracked.exports import log_export

if TYPE_CHECKING:
    from training.run.console import Console


def main(argv: list[str]) -> int:
    """Export; returns the exit status: 0 when done, 2 where something about the command is wrong."""
    options = parse(argv)
    log_file = options.run_dir / "logs" / "export.log"
    return run_job(
        log_file,
        partial(check, options),
        partial(work, options),
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; `--help` comes before anything heavy is imported."""
    parser = checkpoint_parser(
        "python -m eval.export",
        "Write a run's model, with its fp32 weights, as a folder that transformers loads: GPT-2 as "
        "GPT2LMHeadModel, any other variant with its own code, which needs no NormLab.",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", required=True, help="a folder that is new or empty"
    )
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> int:
    """The step to export. Raises UserError where there is no such checkpoint, or no place for the model."""
    read_recipe(options.run_dir)
    _, step = find_checkpoint(options.run_dir, options.step)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"{options.out} is there already: choose another --out, or remove it")
    return step


def work(options: argparse.Namespace, step: int, console: "Console") -> None:
    """Export, and say how to load it; W&B gets to know of it where it knows the run."""
    console.say(export(options.run_dir, options.out, step))
    log_export(options.run_dir, step, options.out, console.say)


def export(run_dir: Path, folder: Path, step: int | None = None) -> str:
    """Write a run's model and its tokenizer to a folder.

    Returns how to load them, in words.

    Raises UserError as `load_model` and `to_hf` do.
    """
    from model import to_hf, variant_name
    from model.huggingface import is_gpt2
    from training.engine.weights import load_model

    from .hf_tokenizer import write_tokenizer

    tokenizer = read_tokenizer(run_dir)
    gpt, step = load_model(run_dir, step)
    to_hf(gpt, folder, tokenizer.eot)
    trust = "" if is_gpt2(gpt.config) else ", trust_remote_code=True"
    lines = [
        f"{folder} holds {variant_name(gpt.config)} at step {step} of {run_dir}; to load it:",
        f'    transformers.AutoModelForCausalLM.from_pretrained("{folder}"{trust})',
        f'    transformers.AutoTokenizer.from_pretrained("{folder}"{trust})',
    ]
    write_tokenizer(tokenizer, folder)
    if note := tokenizer_note(run_dir):
        lines.append(note)
    return "\n".join(lines)


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
