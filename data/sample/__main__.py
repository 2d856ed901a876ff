"""Build the embedded sample: `python -m data`."""

import json

from .build import SAMPLE_DIR, build_sample, is_complete


def main() -> None:
    """Build the sample where it is looked for, and say in one line what is there."""
    verb = "already there" if is_complete(SAMPLE_DIR) else "built"
    folder = build_sample(SAMPLE_DIR, progress=True)
    content = json.loads((folder / "sample.json").read_text())
    train, validation = (
        f"{content['tokens'][part]:,} tokens in {content['documents'][part]:,} documents"
        for part in ("train", "validation")
    )
    passages = f"{content['lastword_passages']:,} last-word passages"
    print(f"embedded sample {verb}: {folder} (training {train}, validation {validation}, {passages})")


if __name__ == "__main__":
    main()
