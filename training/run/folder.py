"""The run folder: resolved configs, environment, `metrics.jsonl` and `summary.json`."""

import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from model.errors import UserError
from model.files import append_text, write_bytes, write_json, write_text
from model.redaction import redact

from ..config.recipe_file import to_yaml
from ..engine.environment import world_size_from_environment
from ..watch.disk import on_full_disk
from .reader import TOKENIZER, damaged_folders, read_metrics, read_summary, step_folders
from .restart import PREFLIGHT_BEFORE, set_aside

FAILURE_KEYS = ("error", "failed_rank", "log")
"""What summary.json says of a start that failed, and of none after it."""
CONFIGS = ("recipe.yaml", "ds_config.json", "environment.json")


class RunFolder:
    """One run's files, which the README describes. Rank 0 writes them; the other ranks only read.

    Attributes:
        path: the folder.
        rank: of this process.
        restarts: whether `--restart` begins again here: then this is the folder of a run that has not begun.
        summary: what summary.json holds, and what rank 0 will write into it next.
        changes: in what the recipe differs from the run's, as `--allow_recipe_change` lets it.
    """

    def __init__(self, path: Path, rank: int, restarts: bool = False) -> None:
        self.path = path
        self.rank = rank
        self.restarts = restarts
        self.summary: dict[str, Any] = {} if restarts else self._stored_summary()
        self.changes: list[dict[str, Any]] = []
        self._lock = FileLock(path / "logs" / f"rank{rank}.lock")
        self.summary_lock = FileLock(path / "logs" / "summary.lock")
        self._check: Callable[[], None] = lambda: None
        self._takes_over = False

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def is_finished(self, steps: int) -> bool:
        """Whether the run has ended and has made that many steps."""
        return self.summary.get("status") == "finished" and (self.summary.get("step") or 0) >= steps

    def has_begun(self) -> bool:
        """Whether a step was finished here or a checkpoint lies here, whole or damaged.

        A start that failed before either is no run: the next one takes its folder over. All ranks see the
        same, because none writes any of this before all have joined.
        """
        if self.restarts:
            return False
        if step_folders(self.checkpoints) or damaged_folders(self.checkpoints):
            return True
        if self._stored_summary().get("step"):
            return True
        metrics = self.path / "metrics.jsonl"
        return metrics.is_file() and bool(metrics.read_bytes().strip())

    def finished_sentence(self) -> str:
        """What a finished run came to."""
        steps, loss = self.summary["step"], self.summary.get("val_loss")
        found = math.nan if loss is None else loss
        return f"{self.path} is finished: {steps} steps, validation loss {found:.4f} nats per token"

    @property
    def log_file(self) -> Path:
        """What this rank and its libraries print."""
        return self.path / "logs" / f"rank{self.rank}.log"

    def claim(self, wait_s: float = 30.0) -> None:
        """Keep other runs out of this folder until this process ends, however it ends. Each rank calls it.

        A run that is just stopping there gets `wait_s` seconds to do so; after that UserError is raised, as
        it is where what stopped there is another run. How an earlier start failed is forgotten: the next
        `update_summary` says no more of it, and where no run `has_begun` nothing that it found out.
        """
        try:
            self._lock.acquire(timeout=wait_s)
        except Timeout as error:
            raise UserError(
                f"{self.path} is being trained by another process: wait for it or stop it"
            ) from error
        (self.path / "logs" / f"failure_rank{self.rank}.json").unlink(missing_ok=True)
        self._check()  # the run that was just stopping may have begun since
        self._takes_over = not self.has_begun()
        self.summary = {} if self._takes_over else self._stored_summary()
        for key in FAILURE_KEYS:
            self.summary.pop(key, None)
        preflight = self.path / "preflight.json"
        if self._takes_over and self.rank == 0 and preflight.is_file():
            if self.restarts:
                os.replace(preflight, self.path / PREFLIGHT_BEFORE)
            else:
                preflight.unlink()

    @property
    def is_claimed(self) -> bool:
        """Whether this process keeps other runs out of this folder."""
        return self._lock.is_locked

    def set_aside(self) -> Path | None:
        """Where rank 0 has put the run before, if this start begins again and there was one.

        All ranks have joined.
        """
        if not (self.restarts and self.rank == 0):
            return None
        if aside := set_aside(self.path):
            self.summary["before_restart"] = aside.name
        return aside

    def sharing_problem(self, world_size: int) -> str | None:
        """A sentence if some host sees another folder under this path, None if all see the same one.

        Each rank has called `claim`, so that a shared folder holds the lock files of all `world_size` ranks.
        """
        locks = set(os.listdir(self.path / "logs"))
        missing = [rank for rank in range(world_size) if f"rank{rank}.lock" not in locks]
        if not missing:
            return None
        return (
            f"{self.path} is not the same folder on all hosts (rank {missing[0]} has another): choose a "
            "--run_dir on a file system that they share"
        )

    def check(self, check: Callable[[], None]) -> None:
        """Ask now, and again in `claim`, whether a run may go on here: `check` raises UserError."""
        self._check = check
        check()

    def record_fingerprints(self, what: str, **fingerprints: str | None) -> None:
        """Note in the summary which data or code the run is on. Raises UserError where it began on other."""
        for key, now in fingerprints.items():
            if (before := self.summary.get(key)) not in (None, now):
                raise UserError(
                    f"{self.path} began on other {what} than its recipe finds now ({key} was {before[:12]}, "
                    f"is {str(now)[:12]}): choose another --run_dir, or bring the first {what} back"
                )
        self.summary |= fingerprints

    def keep_designs(self, files: Mapping[str, Path]) -> None:
        """Copy the files that designs come from into `designs/`, by their names there; nothing else stays."""
        if self.rank != 0:
            return
        folder = self.path / "designs"
        for name, file in files.items():
            write_bytes(folder / name, file.read_bytes())
        for old in folder.rglob("*.py"):
            if old.relative_to(folder).as_posix() not in files:
                old.unlink()

    def keep_tokenizer(self, file: Path | None) -> None:
        """Copy the tokenizer.json of the run: what opens the run later reads text as the run did."""
        if self.rank == 0 and file is not None:
            write_bytes(self.path / TOKENIZER, file.read_bytes())

    def write_configs(
        self, recipe: Mapping[str, Any], ds_config: Mapping[str, Any], command: list[str], step: int = 0
    ) -> None:
        """Write recipe.yaml, ds_config.json and environment.json, over what a start that failed has left.

        All ranks have joined: none looks any more whether a run `has_begun`. The summary and the recipe's
        first lines say what was changed in a run that goes on from `step`.
        """
        if self.changes:
            before = self.summary.get("recipe_changes", [])
            self.summary["recipe_changes"] = [*before, *({"step": step} | one for one in self.changes)]
        if self.rank == 0:
            # Not where the user's own files might lie: all configs are there in a run's folder alone.
            if self._takes_over and all((self.path / name).is_file() for name in CONFIGS):
                shutil.rmtree(self.path / "designs", ignore_errors=True)
                (self.path / "metrics.jsonl").unlink(missing_ok=True)
            if self.changes:  # known before the recipe is the new one
                self.update_summary()
            text = to_yaml(recipe_as_dict(recipe))
            write_text(self.path / "recipe.yaml", _changes_in_words(self.summary) + text)
            write_json(self.path / "ds_config.json", ds_config)
            write_json(self.path / "environment.json", environment(command))

    def update_summary(self, **facts: Any) -> None:
        """Change some of summary.json's keys; each time is a sign of life where the run gives those."""
        if self.rank > 0:
            self.summary |= facts
            return
        with self.summary_lock:
            beat = {"heartbeat": time.time()} if "heartbeat" in self.summary else {}
            self.summary = self.summary | facts | beat  # a new one: other threads may be reading the old
            write_json(self.path / "summary.json", self.summary)

    @contextmanager
    def locked_summary(self, timeout_s: float) -> Iterator[dict[str, Any]]:
        """summary.json for any rank and thread to change: written at the end, and by no other meanwhile.

        Rank 0 has the latest facts itself; another rank adds to what is in the file.
        """
        with self.summary_lock.acquire(timeout=timeout_s):
            self.summary = dict(self.summary if self.rank == 0 else self._stored_summary())
            yield self.summary
            on_full_disk(self.path, lambda: write_json(self.path / "summary.json", self.summary))

    def keep_metrics_until(
        self, step: int, say: Callable[[str], object] | None = None, validation_due: bool = False
    ) -> None:
        """Drop the lines after `step` from metrics.jsonl, and broken ones, of which `say` is told.

        With `validation_due` the validation of this step goes too: it is made again.
        """
        path = self.path / "metrics.jsonl"
        if self.rank != 0 or not path.is_file():
            return
        last = {"val": step - validation_due}
        kept = [line for line in read_metrics(self.path, say) if line["step"] <= last.get(line["kind"], step)]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def append_metrics(self, **values: Any) -> None:
        """Append one line to metrics.jsonl. A value that is not finite is written as null."""
        if self.rank != 0:
            return
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[key] = None
        append_text(self.path / "metrics.jsonl", json.dumps(values) + "\n")

    def _stored_summary(self) -> dict[str, Any]:
        return read_summary(self.path) if (self.path / "summary.json").is_file() else {}


def recipe_as_dict(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's dataclasses as what YAML can hold, and a file may: without what signs a URL."""
    return as_json({name: dataclasses.asdict(section) for name, section in recipe.items()})


def _changes_in_words(summary: Mapping[str, Any]) -> str:
    """What was changed in a run under way, as comments of its recipe."""
    return "".join(
        f"# From step {one['step']} on {one['key']} is {json.dumps(one['now'])}; before that it was "
        f"{json.dumps(one['before'])}.\n"
        for one in summary.get("recipe_changes", [])
    )


def environment(command: list[str]) -> dict[str, Any]:
    """What this run runs on: versions, git commit, hardware, world size, command line."""
    import torch  # here: a refused command imports this module, and torch costs seconds

    packages = ("torch", "deepspeed", "datasets", "tiktoken", "lm-eval", "wandb", "transformers", "numpy")
    cuda = torch.cuda.is_available()
    return {
        "command": command,
        "world_size": world_size_from_environment(),
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in packages},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }


def as_json(tree: Mapping[str, Any]) -> dict[str, Any]:
    """With lists in place of tuples, and URLs without signatures."""
    return json.loads(redact(json.dumps(tree)))


def _git(*arguments: str) -> str | None:
    home = Path(__file__).resolve().parent
    try:
        return subprocess.run(
            ["git", *arguments], cwd=home, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
