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
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from model.errors import UserError
from model.files import append_text, write_bytes, write_json, write_text

from ..config.recipe_file import to_yaml
from ..engine.environment import world_size_from_environment
from ..watch.disk import on_full_disk
from .reader import TOKENIZER, read_json, read_metrics, read_recipe, read_summary, step_folders

FAILURE_KEYS = ("error", "failed_rank", "log")
"""What summary.json says of a start that failed, and of none after it."""
CONFIGS = ("recipe.yaml", "ds_config.json", "environment.json")


class RunFolder:
    """One run's files, which the README describes. Rank 0 writes them; the other ranks only read.

    Attributes:
        path: the folder.
        rank: of this process.
        summary: what summary.json holds, and what rank 0 will write into it next.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self.path = path
        self.rank = rank
        self.summary = self._stored_summary()
        self._lock = FileLock(path / "logs" / f"rank{rank}.lock")
        self.summary_lock = FileLock(path / "logs" / "summary.lock")
        self._check: Callable[[], None] = lambda: None
        self._takes_over = False

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def is_finished(self, steps: int) -> bool:
        """Whether the run has ended and has made that many steps."""
        return self.summary.get("status") == "finished" and self.summary["step"] >= steps

    def has_begun(self) -> bool:
        """Whether a step was finished here or a checkpoint lies here, whole or damaged.

        A start that failed before either is no run: the next one takes its folder over. All ranks see the
        same, because none writes any of this before all have joined.
        """
        if self._stored_summary().get("step") or step_folders(self.checkpoints):
            return True
        metrics = self.path / "metrics.jsonl"
        return metrics.is_file() and bool(metrics.read_bytes().strip())

    def finished_sentence(self) -> str:
        """What a finished run came to."""
        steps, loss = self.summary["step"], self.summary["val_loss"]
        return f"{self.path} is finished: {steps} steps, validation loss {loss:.4f} nats per token"

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
        if self._takes_over and self.rank == 0:
            (self.path / "preflight.json").unlink(missing_ok=True)

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

    def check_same_run(self, recipe: Mapping[str, Any], ds_config: Mapping[str, Any], free: set[str]) -> None:
        """Refuse to continue a run under another recipe or DeepSpeed config, now and in `claim`.

        Keys in `free` ("section.key" or "section") may differ: they do not change the numbers of the steps.
        A folder in which no run `has_begun` takes any. Raises UserError naming the first key that differs.
        """
        self._check = partial(self._refuse_another, recipe, ds_config, free)
        self._check()

    def _refuse_another(
        self, recipe: Mapping[str, Any], ds_config: Mapping[str, Any], free: set[str]
    ) -> None:
        if not (all((self.path / name).is_file() for name in CONFIGS[:2]) and self.has_begun()):
            return
        for key, before, now in differing_keys(self.path, recipe, ds_config, free):
            raise UserError(
                f"{self.path} is a run with {key} = {before!r}, but {now!r} is asked for: choose another "
                "--run_dir, or give the same value to go on"
            )

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
            write_text(folder / name, file.read_text())
        for old in folder.rglob("*.py"):
            if old.relative_to(folder).as_posix() not in files:
                old.unlink()

    def keep_tokenizer(self, file: Path | None) -> None:
        """Copy the tokenizer.json of the run: what opens the run later reads text as the run did."""
        if self.rank == 0 and file is not None:
            write_bytes(self.path / TOKENIZER, file.read_bytes())

    def write_configs(
        self, recipe: Mapping[str, Any], ds_config: Mapping[str, Any], command: list[str]
    ) -> None:
        """Write recipe.yaml, ds_config.json and environment.json, over what a start that failed has left.

        All ranks have joined: none looks any more whether a run `has_begun`.
        """
        if self.rank == 0:
            # Not where the user's own files might lie: all configs are there in a run's folder alone.
            if self._takes_over and all((self.path / name).is_file() for name in CONFIGS):
                shutil.rmtree(self.path / "designs", ignore_errors=True)
                (self.path / "metrics.jsonl").unlink(missing_ok=True)
            write_text(self.path / "recipe.yaml", to_yaml(recipe_as_dict(recipe)))
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

    def keep_metrics_until(self, step: int) -> None:
        """Drop the lines after `step` from metrics.jsonl, and what follows a line that is cut short."""
        path = self.path / "metrics.jsonl"
        if self.rank != 0 or not path.is_file():
            return
        kept = []
        with suppress(UserError):  # the steps of a broken line and those after it are trained again
            for values in read_metrics(self.path):
                if values["step"] <= step:
                    kept.append(json.dumps(values) + "\n")
        write_text(path, "".join(kept))

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


def differing_keys(
    run_dir: Path, recipe: Mapping[str, Any], ds_config: Mapping[str, Any], free: Collection[str]
) -> Iterator[tuple[str, Any, Any]]:
    """In what a run's stored configs differ from these: the key, its value in the run, and its value here.

    A key that the run does not know yet was at its default, which is what NormLab did before there was one.
    A number of lanes that is left open is the run's own. Keys and sections in `free` are passed over. Raises
    UserError where the run's files cannot be read.
    """
    defaults = _flat(recipe_as_dict({name: type(section)() for name, section in recipe.items()}))
    before = (
        defaults
        | _flat(_as_json(read_recipe(run_dir)))
        | _flat({"ds": read_json(run_dir / "ds_config.json")})
    )
    now = _flat(recipe_as_dict(recipe)) | _flat({"ds": dict(ds_config)})
    if now.get("data.lanes", 0) is None:
        del now["data.lanes"]
        before.pop("data.lanes", None)
    for key in sorted(before.keys() | now.keys()):
        if key not in free and key.partition(".")[0] not in free and before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)


def recipe_as_dict(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's dataclasses as what YAML can hold."""
    return _as_json({name: dataclasses.asdict(section) for name, section in recipe.items()})


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


def _as_json(tree: Mapping[str, Any]) -> dict[str, Any]:
    """With lists in place of tuples."""
    return json.loads(json.dumps(tree))


def _git(*arguments: str) -> str | None:
    home = Path(__file__).resolve().parent
    try:
        return subprocess.run(
            ["git", *arguments], cwd=home, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
