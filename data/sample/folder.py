"""Where the embedded sample is kept, and whether it is there."""

import json
import os
from pathlib import Path

SAMPLE_DIR = Path(
    os.environ.get("NORMLAB_SAMPLE_DIR") or Path(__file__).resolve().parents[2] / ".cache" / "sample"
)

FORMAT = 1  # of the builder's rules: a folder built by other rules is built again
FILES = ("train.parquet", "validation.parquet", "lastword.jsonl")
MANIFEST = "sample.json"


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds the whole sample, built by today's rules."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    try:
        content = json.loads(manifest.read_text())
        sizes = {name: entry["bytes"] for name, entry in content["files"].items()}
        return content["format"] == FORMAT and all(
            (folder / name).stat().st_size == sizes[name] for name in FILES
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
