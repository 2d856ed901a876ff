"""The recipe's `tracking` section."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.errors import UserError

MODES = ("online", "offline", "disabled", "shared", "dryrun")


def wandb_mode() -> str:
    """The environment's WANDB_MODE; online where it is not set or empty."""
    return os.environ.get("WANDB_MODE") or "online"


def run_id_of_sweep() -> str | None:
    """The id of the W&B run that a sweep's agent started this process for; None outside a sweep."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


VARIABLES = {
    "project": "WANDB_PROJECT",
    "group": "WANDB_RUN_GROUP",
    "name": "WANDB_NAME",
    "tags": "WANDB_TAGS",
    "entity": "WANDB_ENTITY",
    "notes": "WANDB_NOTES",
    "job_type": "WANDB_JOB_TYPE",
}
"""What the environment says where the recipe is silent or has no key; an empty one says nothing."""


@dataclass(frozen=True)
class TrackingConfig:
    """Weights & Biases. The environment's WANDB_MODE (online, offline, disabled) is respected.

    Attributes:
        project: the W&B project; null takes WANDB_PROJECT's, or normlab
        group: runs that belong together, e.g. one study; null takes WANDB_RUN_GROUP's, or the name of the
            recipe's file
        name: the run's name; null takes WANDB_NAME's, or the run folder's
        tags: words to find the run by; none takes those of WANDB_TAGS, with commas between, or variant, size
            and precision
    """

    project: str | None = None
    group: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (mode := wandb_mode()) not in MODES:
            raise UserError(
                f"WANDB_MODE is {mode!r} in the environment, but it must be one of {', '.join(MODES)}"
            )

    def in_group(self, name: str, before: Mapping[str, Any]) -> "TrackingConfig":
        """With a group where neither recipe nor environment says one: that of `before`, or else `name`.

        Args:
            name: of the recipe's file.
            before: what `settings` gave when the run began; empty for a new one.
        """
        if self.group or os.environ.get(VARIABLES["group"]):
            return self
        return replace(self, group=before.get("group") or name)

    def settings(self, defaults: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
        """What `wandb.init` is given: the recipe, or else the environment, the run's beginning, the defaults.

        Args:
            defaults: the run's name, tags and the like, where nobody says any.
            before: what this gave when the run began; empty for a new one.
        """
        known = {key: value for key, value in before.items() if key in VARIABLES}
        found: dict[str, Any] = {"project": "normlab", "job_type": "train", **defaults, **known}
        for key, variable in VARIABLES.items():
            given = os.environ.get(variable)
            if given and key == "tags":
                found[key] = [tag.strip() for tag in given.split(",") if tag.strip()]
            elif given:
                found[key] = given
        recipe = {"project": self.project, "group": self.group, "name": self.name, "tags": list(self.tags)}
        return found | {key: value for key, value in recipe.items() if value}
