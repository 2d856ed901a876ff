"""Weights & Biases: a view of the run. `metrics.jsonl` stays the truth."""

import os
import secrets
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config.tracking import TrackingConfig, wandb_mode


class Tracker:
    """Rank 0's W&B run: online where a key and the network allow it, else offline, said in one line.

    It begins with the first `log`: importing wandb and starting its process takes seconds, and nothing is
    there to be logged before the first step is over.

    Attributes:
        id: the W&B run's, for the checkpoint.
        run: the W&B run; None before it has begun, and once it is lost.
        settings: its project, name and the like.

    Args:
        config: project, group, name and tags, where the recipe says them.
        run_dir: the run folder, which gets W&B's own files unless WANDB_DIR names another.
        run_id: continues that W&B run; None starts one.
        facts: what W&B shows as the run's config.
        say: is told whether the run is offline, and why.
        before: the settings that the run began with, which stay where neither recipe nor environment says.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        run_id: str | None,
        facts: dict[str, Any],
        say: Callable[[str], None],
        before: Mapping[str, Any] | None = None,
    ) -> None:
        self.id = run_id or _new_id()
        self.settings = config.settings(run_dir.name, before or {})
        self._run_dir, self._facts, self._say = run_dir, facts, say
        self.run: Any = None
        self._lost = False

    def begin(self) -> None:
        """Start the W&B run, unless it has begun; one that W&B refuses, for a tag perhaps, is lost."""
        if self.run is None and not self._lost:
            try:
                self.run = self._start()
            except Exception as error:
                self._lose(error)

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
        self.begin()
        if self._lost:
            return
        try:
            action(self.run)
        except Exception as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self.run, self._lost = None, True
        what = " ".join(str(error).split())
        self._say(f"W&B is lost ({type(error).__name__}: {what}): metrics.jsonl goes on without it")

    def _start(self) -> Any:
        import wandb
        from wandb.errors import CommError, UsageError

        mode: Any = wandb_mode().replace("dryrun", "offline")
        reason = _offline_reason() if mode == "online" else None
        if reason:
            mode = "offline"
        arguments: dict[str, Any] = dict(
            **self.settings,
            dir=os.environ.get("WANDB_DIR") or self._run_dir,
            id=self.id,
            resume="allow",
            config=self._facts,
            settings=wandb.Settings(init_timeout=20, silent=True, console="off", quiet=True),
        )
        try:
            run = wandb.init(mode=mode, **arguments)
        except (CommError, UsageError) as error:
            reason, mode = str(error).strip().splitlines()[0], "offline"
            run = wandb.init(mode=mode, **arguments)
        if mode == "offline":
            because = f" ({reason})" if reason else ""
            self._say(f"W&B: offline run{because}; send it later with: wandb sync {Path(run.dir).parent}")
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run


def _new_id() -> str:
    """Eight letters and digits, as W&B's own ids are."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


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
