"""Weights & Biases: a view of the run. `metrics.jsonl` stays the truth."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
            raise ValueError(
                f"WANDB_MODE is {mode!r} in the environment, but it must be one of {', '.join(MODES)}"
            )


class Tracker:
    """Rank 0's W&B run: online where a key and the network allow it, else offline, said in one line.

    `run_id` continues that W&B run; None starts one, whose id is then in `id` for the checkpoint.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        run_id: str | None,
        facts: dict[str, Any],
        say: Callable[[str], None],
    ) -> None:
        # Imported here: only rank 0 tracks, and W&B costs a second.
        import wandb
        from wandb.errors import CommError, UsageError
        from wandb.sdk.lib.runid import generate_id

        self.id = run_id or generate_id()
        self._say = say
        mode: Any = wandb_mode().replace("dryrun", "offline")
        reason = _offline_reason() if mode == "online" else None
        if reason:
            mode = "offline"
        arguments: dict[str, Any] = dict(
            project=config.project,
            group=config.group,
            name=config.name or run_dir.name,
            tags=list(config.tags),
            dir=run_dir,
            id=self.id,
            resume="allow",
            config=facts,
            settings=wandb.Settings(init_timeout=20, silent=True, console="off", quiet=True),
        )
        self.run: Any = None
        try:
            self.run = wandb.init(mode=mode, **arguments)
        except (CommError, UsageError) as error:
            reason, mode = str(error).strip().splitlines()[0], "offline"
            self.run = wandb.init(mode=mode, **arguments)
        if mode == "offline":
            because = f" ({reason})" if reason else ""
            say(f"W&B: offline run{because}; send it later with: wandb sync {Path(self.run.dir).parent}")
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Log `kind/name` for each value, against `step` as the x-axis."""
        self._send(lambda run: run.log({"step": step} | {f"{kind}/{name}": v for name, v in values.items()}))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the run's summary and close it."""
        facts = {key: value for key, value in summary.items() if not isinstance(value, dict)}
        self._send(lambda run: run.summary.update(facts))
        self._send(lambda run: run.finish())

    def _send(self, action: Callable[[Any], object]) -> None:
        """W&B runs in a process of its own: where that was ended, by a signal to all, the run goes on."""
        if self.run is None:
            return
        try:
            action(self.run)
        except Exception as error:
            self.run = None
            self._say(f"W&B is lost ({type(error).__name__}: {error}): metrics.jsonl goes on without it")


def _offline_reason() -> str | None:
    """Why an online run cannot be had, found out within seconds and without a prompt; None if it can."""
    import requests
    import wandb

    settings = wandb.setup().settings
    if not settings.api_key and requests.utils.get_netrc_auth(settings.base_url) is None:
        return "no W&B key"
    try:
        requests.head(settings.base_url, timeout=3)
    except requests.RequestException:
        return f"{settings.base_url} cannot be reached"
    return None
