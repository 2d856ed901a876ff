"""The tokenizer that a run was trained with, wherever its file lies now."""

from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import UserError

from .reader import TOKENIZER, read_recipe, read_summary

if TYPE_CHECKING:
    from data import Tokenizer


def read_tokenizer(run_dir: Path) -> "Tokenizer":
    """The tokenizer that a run was trained with: of a tokenizer.json the copy that the run keeps.

    Raises UserError where it is another than the run's, and as `open_tokenizer` does.
    """
    from data import open_tokenizer  # it costs more than the rest of this module

    section = read_recipe(run_dir).get("data") or {}
    name = section.get("tokenizer", "gpt2")  # runs from before there was a choice
    is_kept = name.endswith(".json") and (run_dir / TOKENIZER).is_file()
    tokenizer = open_tokenizer(name, run_dir / TOKENIZER) if is_kept else open_tokenizer(name)
    summary = read_summary(run_dir) if (run_dir / "summary.json").is_file() else {}
    if (before := summary.get("tokenizer_fingerprint")) not in (None, tokenizer.fingerprint):
        raise UserError(
            f"{tokenizer.file or name} is not the tokenizer that {run_dir} was trained with (its fingerprint "
            f"was {before[:12]}, is {tokenizer.fingerprint[:12]}): bring the first one back"
        )
    return tokenizer


def tokenizer_note(run_dir: Path) -> str | None:
    """What must be known of the tokenizer of a run from before it was kept; None where there is no doubt."""
    name = (read_recipe(run_dir).get("data") or {}).get("tokenizer", "gpt2")
    if not name.endswith(".json") or (run_dir / TOKENIZER).is_file():
        return None
    return (
        f"{run_dir} keeps no copy of its tokenizer: {name} is read as it lies there now, so make sure that "
        "it is still the one that the run was trained with"
    )
