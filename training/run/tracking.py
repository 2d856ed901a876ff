"""Weights & Biases: a view of the run. `metrics.jsonl` stays the truth."""

import os
import secrets
import shlex
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.tracking import TrackingConfig, wandb_mode
from .reader import read_metrics
from .wandb_parts import mend_parts

AXES = ("step", "tokens", "total_flops", "gpu_hours", "cpu_rank_hours")
"""What all values can be drawn against: each row has them. W&B draws against the step unless asked."""
EXTREMES = {
    "train/loss": "min",
    "val/loss": "min",
    "val/bits_per_byte": "min",
    "train/grad_norm": "max",
    "train/lr": "max",
}
"""Of which values W&B's summary has more than the last."""
CONFIG_FACTS = (
    "tokenizer_fingerprint", "design_fingerprint", "data_fingerprint", "val_fingerprint", "init_fingerprint",
    "init_from", "data_lanes", "data_revision", "data_validation_revision", "candidate_overrides",
)  # fmt: skip
"""What of summary.json belongs to a run's config, beside what the reporter writes there itself."""
LONGEST_TAG = 64
"""W&B refuses a run that has a longer one."""


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
        facts: what W&B shows as the run's config; what is under "run" there is left out of its summary.
        say: is told whether the run is offline, and why.
        before: the settings that the run began with, which stay where neither recipe nor environment says.
        tags: words to find the run by, where neither says any.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        run_id: str | None,
        facts: dict[str, Any],
        say: Callable[[str], None],
        before: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        self.id = run_id or _new_id()
        defaults: dict[str, Any] = {"name": run_dir.name, "tags": [tag[:LONGEST_TAG] for tag in tags]}
        self.settings = config.settings(defaults, before or {})
        self._run_dir, self._facts, self._say = run_dir, facts, say
        self.run: Any = None
        self._lost = False
        self._row = 0  # the step of the latest row

    def begin(self) -> None:
        """Start the W&B run, unless it has begun; one that W&B refuses, for a tag perhaps, is lost."""
        if self.run is None and not self._lost:
            try:
                self.run = self._start()
            except Exception as error:
                self._lose(error)

    def log(
        self, kind: str, step: int, values: Mapping[str, Any], axes: Mapping[str, float] | None = None
    ) -> None:
        """Log `kind/name` for each value, in the row of `step`, which W&B counts as the run's own step.

        Args:
            kind: of the values, such as train or val.
            step: optimizer steps taken; those that a run makes again replace what W&B has of them.
            values: by name.
            axes: what else the values can be drawn against, by names of `AXES`; they get no kind.
        """
        row = {"step": step, **(axes or {})} | {f"{kind}/{name}": value for name, value in values.items()}
        self._send(lambda run: run.log(row, step=step))
        self._row = step

    def alert(self, title: str, text: str) -> None:
        """Tell those who watch the run, by the mail or the chat that they have set up for W&B's alerts."""
        self._send(lambda run: run.alert(title=title, text=text, level="ERROR"))

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Write the run's summary and close it; with another `exit_code` than 0 W&B shows it as failed."""
        config = self._facts.get("run", {})
        facts = {key: value for key, value in summary.items() if key not in config and key != "wandb"}
        if self._row:  # W&B keeps the last row until the next, and its values would replace the summary's
            step = self._row
            self._send(lambda run: run.log({"step": step}, step=step, commit=True))
        self._send(lambda run: run.summary.update(facts | extremes(self._run_dir)))
        self._send(lambda run: run.finish(exit_code=exit_code))

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
        folder = Path(os.environ.get("WANDB_DIR") or self._run_dir)
        if mode != "disabled":
            mend_parts(folder / "wandb", self.id)
        arguments: dict[str, Any] = dict(
            **self.settings,
            dir=folder,
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
            # All parts: each start writes one, a second in the same second as ID-1; none is sent twice.
            parts = f"{shlex.quote(str(Path(run.dir).parents[1]))}/offline-run-*-{self.id}*"
            self._say(f"W&B: offline run{because}; send it later with: wandb sync {parts}")
        for name in AXES:
            run.define_metric(name)
        run.define_metric("*", step_metric="step")
        for name, extreme in EXTREMES.items():
            run.define_metric(name, step_metric="step", summary=f"{extreme},last")
        return run


def extremes(run_dir: Path) -> dict[str, dict[str, float]]:
    """The lowest or highest and the last value of each of `EXTREMES`, of all the run's starts.

    W&B's own are those of the latest start alone.
    """
    found: dict[str, dict[str, float]] = {}
    for line in read_metrics(run_dir):
        for name, extreme in EXTREMES.items():
            kind, _, key = name.partition("/")
            if line["kind"] != kind or (value := line.get(key)) is None:
                continue
            of_both = min if extreme == "min" else max
            before = found.get(name, {extreme: value})[extreme]
            found[name] = {extreme: of_both(before, value), "last": value}
    return found


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
