"""Tokenise a source once, into token shards that train without tokenising and that llm.c reads too.

    python scripts/tokenize_data.py corpus/prose --out tokens/prose --data.tokenizer gpt2

Killed at any moment, the same command continues. A run on the folder (`data.source: tokens/prose`) reads the
same sequences as one on the source.
"""

import sys
import time
from collections.abc import Sequence

from model.checkout import refuse_other_checkout

refuse_other_checkout(__file__)

from data.command import SourceParser, at_least, open_with_notes
from data.parallel import default_workers
from model.errors import UserError, print_error
from model.redaction import redact_output


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = SourceParser("scripts/tokenize_data.py", "Tokenise a source into token shards.")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder of the token shards")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=at_least(1),
        default=default_workers(),
        help="processes (default: %(default)s)",
    )
    begin = time.monotonic()
    try:
        options, config = parser.parse(arguments)
        source, tokenizer = open_with_notes(config)
        from data.tokenize_source import tokenize_source

        made = tokenize_source(source, config, tokenizer, options.out, options.workers, progress=True)
    except (UserError, OSError) as error:
        return print_error(error)
    except KeyboardInterrupt:
        print_error("interrupted; the same command continues")
        return 130
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in made["bad"].items())
    print(
        f"{made['documents']:,} documents, {made['tokens']:,} tokens, "
        f"{made['text_bytes'] / max(1, made['tokens']):.3f} bytes per token"
        f"{f' (left out: {left_out})' if left_out else ''}, in {options.out}, "
        f"{time.monotonic() - begin:.1f} s. In a recipe: data.source: {options.out}"
    )
    if source.validation_split is not None:
        print(
            f"They hold no document of the split `{source.validation_split}`, which a run on {source.name} "
            f"holds out: data.validation_source: {source.name} does so here too."
        )
    return 0


if __name__ == "__main__":
    redact_output()
    sys.exit(main())
