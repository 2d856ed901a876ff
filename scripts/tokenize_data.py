"""Tokenise a source once, into token shards that train without tokenising and that llm.c reads too.

    python scripts/tokenize.py ../shared/data/corpus/prose --out tokens/prose --data.tokenizer gpt2

Killed at any moment, the same command continues. A run on the folder (`data.source: tokens/prose`) reads the
same sequences as one on the source.
"""

# this folder's tokenize.py would hide the standard library's, which inspect and linecache need
import sys

sys.path[0] = __file__.rpartition("/scripts/")[0]

import time
from collections.abc import Sequence

from data.command import SourceParser, at_least, open_with_notes
from data.parallel import default_workers
from data.tokenize_source import tokenize_source
from model.errors import print_error as fail


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = SourceParser("scripts/tokenize.py", "Tokenise a source into token shards.")
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
        made = tokenize_source(source, config, tokenizer, options.out, options.workers, progress=True)
    except (ValueError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return fail("interrupted; the same command continues") and 130
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in made["bad"].items())
    print(
        f"{made['documents']:,} documents, {made['tokens']:,} tokens, "
        f"{made['text_bytes'] / max(1, made['tokens']):.3f} bytes a token"
        f"{f' (left out: {left_out})' if left_out else ''}, in {options.out}, "
        f"{time.monotonic() - begin:.1f} s. In a recipe: data.source: {options.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
