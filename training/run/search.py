"""Runs that are there already: found by their resolved configs and fingerprints, never by a folder's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import UserError

from ..config.deepspeed import DeepSpeedConfig
from ..config.recipe import FREE_TO_CHANGE, Recipe
from .changes import differing_keys
from .folder import CONFIGS, RunFolder
from .reader import read_summary

OF_NO_EFFECT = FREE_TO_CHANGE - {
    "train.steps",  # another length is another run
    "ds.train_micro_batch_size_per_gpu",
    "ds.gradient_accumulation_steps",
}
"""What two runs may differ in and still be one and the same, number for number."""
DESIGN_FILES = ("model.norm", "model.block", "model.topology")
ENDED = ("finished", "diverged")
QUICK = ("init_seed", "steps", "tokens_per_step")
"""Of summary.json: most runs differ in one of these, which spares reading their configs."""


@dataclass(frozen=True)
class WantedRun:
    """A run as it would be trained now.

    Attributes:
        recipe: as resolved, the seed included
        deepspeed: the engine for `ranks`
        ranks: the world size
        fingerprints: of data and code, by their keys in summary.json
        older_data: the data's as an older NormLab gives it
    """

    recipe: Recipe
    deepspeed: DeepSpeedConfig
    ranks: int
    fingerprints: Mapping[str, str | None]
    older_data: str | None = None


def find_run(runs: Path, wanted: WantedRun) -> Path | None:
    """The folder in `runs` of this very run: one that has ended, or else the one that came furthest."""
    found = []
    for configs in sorted(runs.glob(f"*/{CONFIGS[0]}")):
        try:
            if (summary := _summary_if_same(configs.parent, wanted)) is not None:
                ended = summary.get("status") in ENDED
                found.append((ended, summary.get("step") or 0, configs.parent))
        except UserError:  # no run, or one whose files are damaged
            continue
    return max(found, key=lambda run: run[:2])[2] if found else None


def _summary_if_same(folder: Path, wanted: WantedRun) -> Mapping[str, Any] | None:
    if not RunFolder(folder, rank=0).has_begun():
        return None
    summary = read_summary(folder)
    if summary.get("world_size") != wanted.ranks:
        return None
    if summary.get("recipe_changes"):  # its first steps were another run's
        return None
    own = wanted.recipe.facts(wanted.deepspeed)
    if any(summary.get(key, own[key]) != own[key] for key in QUICK):
        return None
    found = {key: summary.get(key) for key in wanted.fingerprints}
    if "data_fingerprint" in found and found["data_fingerprint"] == wanted.older_data:
        found["data_fingerprint"] = wanted.fingerprints["data_fingerprint"]
    if found != wanted.fingerprints:
        return None
    differing = list(differing_keys(folder, vars(wanted.recipe), wanted.deepspeed.raw, OF_NO_EFFECT))
    # The code's fingerprint is the same: a file that was moved is no other design. train.py would not go on.
    moved = all(key in DESIGN_FILES and _class_of(then) == _class_of(now) for key, then, now in differing)
    return summary if not differing or (moved and summary.get("status") in ENDED) else None


def _class_of(design: str) -> tuple[str, str]:
    """The stem of a design's file, which names its results, and its class."""
    where, _, class_name = design.rpartition(":")
    return (Path(where).stem if where.endswith(".py") else where), class_name
