"""What each layer of a model does: `python -m eval.diagnose RUN_OR_FOLDER [--step N] [--sequences N]`."""

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from model.redaction import redact_output
from model.values import FROM_1
from training.checkpoints.found import find_checkpoint
from training.run.reader import is_model_folder, read_recipe, reading, section_of
from training.run.tokenizer import tokenizer_note

from .command import checkpoint_parser, run_job
from .given import STEP, check_given, load_given

if TYPE_CHECKING:
    from data import ValidationSet
    from model import GPT
    from training.run.console import Console

    from .diagnosis.measures import Sequences


@dataclass(frozen=True)
class Job:
    """What is measured, and where the result goes.

    Attributes:
        source: a run folder, or a model in Hugging Face's form.
        like: the run whose validation tokens are read: the source itself where it is a run.
        out: the folder that gets eval/step_*/diagnosis.parquet.
        step: of the checkpoint.
        sequences: how many are read, or all of the validation set where it has fewer.
    """

    source: Path
    like: Path
    out: Path
    step: int
    sequences: int


def main(argv: list[str]) -> int:
    """Measure; returns the exit status: 0 when done, 2 where something about the command is wrong."""
    options = parse(argv)
    log_file = (options.out or options.run_dir) / "logs" / "diagnose.log"
    return run_job(log_file, partial(check, options), diagnose)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; `--help` comes before anything heavy is imported."""
    parser = checkpoint_parser(
        "python -m eval.diagnose",
        "Measure what each layer of a checkpoint does, with its fp32 weights, on validation tokens: the loss "
        "without it, without its branches and with neighbours swapped, how alike the layers' streams are "
        "(CKA, angles), their rank, from which layer on the logit lens says what the model says, and what "
        "linear layers of 8 bits would cost. It goes to RUN_DIR/eval/step_*/diagnosis.parquet, which the "
        "report draws; what is there is not measured again.",
        "The time is that of some 4 forward passes for each layer. A folder with a model in Hugging Face's "
        "form is measured on the validation set of the run that --validation_like names.",
    )
    parser.add_argument(
        "--sequences",
        type=int,
        default=16,
        metavar="N",
        help="sequences of the model's block size, from all over the validation set (default: 16)",
    )
    parser.add_argument(
        "--validation_like",
        type=Path,
        metavar="RUN_DIR",
        help="of a model without a run: the run whose validation set and tokenizer it is measured on",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="of a model without a run: where its results go (default: into its folder)",
    )
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> Job:
    """The job. Raises UserError for whatever can be said before a model is loaded."""
    if not FROM_1.holds(options.sequences):
        raise UserError(f"--sequences is {options.sequences}, but it must be a number {FROM_1}")
    source, like, out = options.run_dir, options.validation_like, options.out or options.run_dir
    if is_model_folder(source):
        check_given(source, like, out, options.step)
        return Job(source, like, out, STEP, options.sequences)
    read_recipe(source)
    if like or options.out:
        given = "--validation_like" if like else "--out"
        raise UserError(f"{given} is for a model without a run, and {source} is a run: leave it out")
    return Job(source, source, out, find_checkpoint(source, options.step)[1], options.sequences)


def diagnose(job: Job, console: "Console") -> None:
    """Measure, unless that was done on as many sequences, write the file and say what is in it.

    Raises UserError as `load_model`, `load_given` and `validation_set` do, and where the file is about other
    weights.
    """
    import pandas as pd

    from .diagnosis.files import diagnosis_file, format_diagnosis, read_facts

    file = diagnosis_file(job.out, job.step)
    facts = read_facts(file)
    if job.source != job.like or facts is None or facts["sequences_asked"] != job.sequences:
        facts = _measure(job, file, console)
    with reading(file):
        table = pd.read_parquet(file)
    console.say(f"{facts['sequences']} sequences of {facts['block_size']} validation tokens")
    console.say(format_diagnosis(table))
    for note in facts["notes"]:
        console.say(note)
    console.say(f"diagnosis in {file}")


def _measure(job: Job, file: Path, console: "Console") -> dict[str, Any]:
    """Measure and write the file; returns what it was measured on."""
    import torch

    from training.engine.start import fingerprint
    from training.engine.weights import load_model

    from .diagnosis.files import read_facts, write_diagnosis
    from .diagnosis.measures import measure
    from .scoring.windows import validation_set

    if note := tokenizer_note(job.like):
        console.say(note)
    validation = validation_set(job.like)
    if job.source == job.like:
        gpt = load_model(job.source, job.step)[0]
    else:
        gpt = load_given(job.source, job.like)[0]
    gpt.to("cuda" if torch.cuda.is_available() else "cpu")
    block_size = min(section_of(job.like, "model").block_size, gpt.config.block_size)
    document_mask = section_of(job.like, "data").document_mask
    sequences = choose_sequences(gpt, validation, block_size, job.sequences, document_mask)
    facts = {
        "sequences_asked": job.sequences,
        "sequences": len(sequences.inputs),
        "block_size": sequences.inputs.shape[1],
        "document_mask": document_mask,
        "val_fingerprint": validation.fingerprint,
        "weights_fingerprint": fingerprint(gpt.state_dict()),
    }
    stored = read_facts(file)
    if stored and stored["weights_fingerprint"] != facts["weights_fingerprint"]:
        raise UserError(f"{file} is about other weights: choose another --out, or remove it")
    if stored and facts.items() <= stored.items():
        return stored
    device = next(gpt.parameters()).device
    console.say(f"measuring {job.source} on {len(sequences.inputs)} validation sequences, on {device}")
    found = measure(gpt, sequences, console.bar)
    write_diagnosis(file, found, facts)
    return facts | {"notes": found.notes()}


def choose_sequences(
    gpt: "GPT", validation: "ValidationSet", block_size: int, most: int, document_mask: bool
) -> "Sequences":
    """Whole blocks of the validation set, as far apart as can be, on the model's device.

    A validation set of less than a block is one sequence. Raises UserError where a design cannot keep
    documents apart.
    """
    import torch

    from data import document_ids

    from .diagnosis.measures import Sequences
    from .scoring.lm import TOKENS_PER_BATCH

    block_size = min(block_size, len(validation.document))
    inputs, targets = validation.blocks(block_size)
    whole = len(validation.document) // block_size
    rows = torch.linspace(0, whole - 1, min(most, whole)).round().long()
    device = next(gpt.parameters()).device
    documents = None
    if document_mask:
        gpt.check_document_mask()
        documents = document_ids(inputs[rows], int(validation.tokens[0])).to(device)
    batch = max(1, TOKENS_PER_BATCH["cpu" if device.type == "cpu" else "cuda"] // block_size)
    return Sequences(inputs[rows].to(device), targets[rows].to(device), documents, batch)


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
