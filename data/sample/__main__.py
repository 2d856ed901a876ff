"""Build the embedded sample: `python -m data.sample`."""

import argparse
import json
import sys
from collections.abc import Sequence

from model.errors import UserError, print_error
from model.redaction import redact_output

from .build import build_sample
from .folder import MANIFEST, SAMPLE_DIR, is_complete


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the sample where it is looked for, and say in one line what is there; returns the exit status."""
    argparse.ArgumentParser(
        "python -m data.sample",
        description="Build the embedded sample, in NORMLAB_SAMPLE_DIR where that is set.",
    ).parse_args(arguments)
    verb = "already there" if is_complete(SAMPLE_DIR) else "built"
    try:
        folder = build_sample(SAMPLE_DIR, progress=True)
        content = json.loads((folder / MANIFEST).read_text())
    except (UserError, OSError) as error:
        return print_error(error)
    train, validation = (
        f"{content['tokens'][part]:,} tokens in {content['documents'][part]:,} documents"
        for part in ("train", "validation")
    )
    passages = f"{content['lastword_passages']:,} last-word passages"
    print(f"embedded sample {verb}: {folder} (training {train}, validation {validation}, {passages})")
    return 0


if __name__ == "__main__":
    redact_output()
    sys.exit(main())
