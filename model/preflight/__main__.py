"""Check a design before a run is paid for: does it keep the contract, see no future, stay finite, and learn?

    python -m model.preflight --model.variant rmsnorm --model.preset gpt2_medium
    python -m model.preflight --model.variant my_design.py --json report.json
    python -m model.preflight --model.norm rmsnorm --model.norm_options.eps 1e-6 --model.block parallel

Any field of the recipe's `model` section may follow, as --model.KEY VALUE; the size is gpt2_medium's where
nothing else is said. --quick checks what every run checks as it starts. The exit status is 0 where the design
passed, with or without warnings, 1 where it is refused, and 2 for a command that names something unknown.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from training.config.candidate import STANDS_FOR, read_overrides
from training.config.command_line import CommandLine, Option
from training.config.commands import SHORTHANDS

from ..catalogue import VARIANTS
from ..config import GPTConfig
from ..errors import UserError, print_error
from ..files import write_json
from ..plug_points import design_files
from ..redaction import redact_output
from . import preflight

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 200_000
COMMAND = CommandLine(
    prog="python -m model.preflight",
    usage="python -m model.preflight [--model.variant NAME or FILE.py] [--model.preset NAME] "
    "[--model.KEY VALUE ...]\n                 [--quick] [--json FILE]",
    description="Check a design before a run is paid for: does it keep the contract, see no future, stay "
    "finite, and learn? The exit status is 0 where it passed, with or without warnings, 1 where it is "
    "refused, and 2 for a command that names something unknown.",
    sections={"model": GPTConfig},
    shorthands=SHORTHANDS,
    options={
        "quick": Option("check what every run checks as it starts, and no more", metavar=None),
        "json": Option("a file for the report", "FILE"),
    },
    epilog=f"Variants: {', '.join(VARIANTS)}.",
)
DEFAULTS = {"model.preset": "gpt2_medium"}
"""The size where nothing else is said."""


def main(argv: list[str]) -> int:
    """Print the report; returns the exit status."""
    try:
        given = COMMAND.read(argv)
        sections, _ = COMMAND.build_sections(DEFAULTS, given.keys)
        config, quick = sections["model"], "quick" in given.options
        overrides = read_overrides(design_files(config).values())
        report = preflight(config, tokens=None if quick else sample_tokens(), thorough=not quick)
        if file := given.options.get("json"):
            write_json(Path(file), report.to_json())
    except (UserError, OSError) as error:
        return print_error(error)
    print(f"{report.design}, GPT-2 {config.size}")
    print(report.table())
    for name, value in overrides.items():
        print(f"a run of it has {name} {value:g} of the candidate's own ({STANDS_FOR[name]})")
    return 0 if report.passed else 1


def sample_tokens() -> "Tensor":
    """The beginning of the embedded sample as bytes: (200,000,) int64, fewer where it is shorter."""
    # Here, so that a command that is refused or explains itself has not imported torch.
    import numpy as np
    import torch

    from data import SAMPLE_DIR, DataConfig, open_source, open_tokenizer
    from data.sample.build import is_complete

    if not is_complete(SAMPLE_DIR):
        print("building the embedded sample, once; it takes about a minute", file=sys.stderr)
    tokenizer = open_tokenizer("bytes")
    source = open_source(DataConfig(source="sample", tokenizer="bytes"), tokenizer)
    found: list[np.ndarray] = []
    for shard in source.shards:
        for document in source.read(shard).kept:
            found.append(tokenizer.encode_document(document) if isinstance(document, str) else document)
        if sum(map(len, found)) >= TOKENS:
            break
    return torch.from_numpy(np.concatenate(found)[:TOKENS].astype(np.int64))


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
