"""What a run says of itself before its first step."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config.deepspeed import DeepSpeedConfig
from ..config.recipe import Recipe


def derived_numbers(
    run_dir: Path, summary: Mapping[str, Any], recipe: Recipe, ds: DeepSpeedConfig
) -> Iterator[str]:
    """Every number of a run that follows from others, in sentences.

    Args:
        run_dir: its folder.
        summary: what summary.json says when it begins.
        recipe: the run as resolved.
        ds: its DeepSpeed config.
    """
    ranks, tokens, floors = summary["world_size"], summary["tokens_per_step"], summary["floors"]
    yield (
        f"{run_dir}: {summary['variant']}, GPT-2 {recipe.model.size}, {summary['parameters']:,} parameters, "
        f"{ds.precision}, ZeRO-{ds.stage}, {ranks} rank(s)"
    )
    yield (
        f"each step: {ds.micro_batch} sequences x {ds.accumulation} accumulation steps x {ranks} rank(s) "
        f"x {summary['block_size']} tokens = {tokens:,} tokens; {summary['steps']:,} steps = "
        f"{summary['steps'] * tokens:,} tokens"
    )
    yield (
        f"validation: {summary['val_tokens']:,} tokens of {summary['val_bytes']:,} bytes, on which "
        f"guessing every token alike scores {floors['uniform']:.2f} nats per token and a unigram model "
        f"{floors['unigram']:.2f}"
    )
