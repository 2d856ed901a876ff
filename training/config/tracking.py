"""The recipe's `tracking` section."""

import os
from dataclasses import dataclass

from model.errors import UserError

MODES = ("online", "offline", "disabled", "shared", "dryrun")


def wandb_mode() -> str:
    """The environment's WANDB_MODE; online where it is not set or empty."""
    return os.environ.get("WANDB_MODE") or "online"


@dataclass(frozen=True)
class TrackingConfig:
    """Weights & Biases. The environment's WANDB_MODE (online, offline, disabled) is respected.

    Attributes:
        project: the W&B project
        group: runs that belong together, e.g. one study; null for none
        name: the run's name; null takes the run folder's
        tags: words to find the run by
    """

    project: str = "normlab"
    group: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (mode := wandb_mode()) not in MODES:
            raise UserError(
                f"WANDB_MODE is {mode!r} in the environment, but it must be one of {', '.join(MODES)}"
            )
