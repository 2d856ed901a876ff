"""The run folder: resolved configs, environment, `metrics.jsonl` and `summary.json`."""

import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout


def write_text(path: Path, text: str) -> None:
    """Write a file so that a crash at any moment leaves the old text or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of JSON, indented."""
    write_text(path, json.dumps(value, indent=2) + "\n")


class RunFolder:
    """One run's files, which the README describes. Rank 0 writes them; the other ranks only read."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path = path
        self.rank = rank
        self.summary: dict[str, Any] = {}
        self._lock = FileLock(path / "logs" / f"rank{rank}.lock")
        if (path / "summary.json").is_file():
            self.summary = json.loads((path / "summary.json").read_text())

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def claim(self, wait_s: float = 30.0) -> None:
        """Keep other runs out of this folder until this process ends, however it ends. Each rank calls it.

        A run that is just stopping there gets `wait_s` seconds to do so; after that ValueError is raised.
        """
        try:
            self._lock.acquire(timeout=wait_s)
        except Timeout as error:
            raise ValueError(
                f"{self.path} is being trained by another process: wait for it or stop it"
            ) from error

    def not_shared(self, world_size: int) -> str | None:
        """A sentence where a rank on another host has a folder of its own. All ranks have called `claim`."""
        locks = set(os.listdir(self.path / "logs"))
        missing = [rank for rank in range(world_size) if f"rank{rank}.lock" not in locks]
        if not missing:
            return None
        return (
            f"{self.path} is not the same folder on all hosts (rank {missing[0]} has another): choose a "
            "--run_dir on a file system that they share"
        )

    def check_same_run(self, recipe: Mapping[str, Any], ds_config: Mapping[str, Any], free: set[str]) -> None:
        """Refuse to continue a run under another recipe or DeepSpeed config.

        Keys in `free` ("section.key" or "section") may differ: they do not change the numbers of the steps.
        Raises ValueError naming the first key that differs.
        """
        theirs_recipe, theirs_ds = self.path / "recipe.yaml", self.path / "ds_config.json"
        if not (theirs_recipe.is_file() and theirs_ds.is_file()):
            return
        before = _flat(yaml.safe_load(theirs_recipe.read_text())) | _flat(
            {"ds": json.loads(theirs_ds.read_text())}
        )
        now = _flat(plain(recipe)) | _flat({"ds": dict(ds_config)})
        for key in sorted(before.keys() | now.keys()):
            if key in free or key.partition(".")[0] in free:
                continue
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"{self.path} is a run with {key} = {before.get(key)!r}, but {now.get(key)!r} is asked "
                    "for: choose another --run_dir, or give the same value to go on"
                )

    def pin(self, what: str, **fingerprints: str | None) -> None:
        """Note in the summary which data or code the run is on. Raises ValueError where it began on other."""
        for key, now in fingerprints.items():
            if (before := self.summary.get(key)) not in (None, now):
                raise ValueError(
                    f"{self.path} began on other {what} than its recipe finds now ({key} was {before[:12]}, "
                    f"is {str(now)[:12]}): choose another --run_dir, or bring the first {what} back"
                )
        self.summary |= fingerprints

    def keep_designs(self, files: Mapping[Any, Path]) -> None:
        """Copy the files that designs come from to `designs/norm.py`, `block.py` and `topology.py`."""
        for plug, file in files.items() if self.rank == 0 else ():
            (self.path / "designs").mkdir(exist_ok=True)
            write_text(self.path / "designs" / f"{plug}.py", file.read_text())

    def write_configs(
        self, recipe: Mapping[str, Any], ds_config: Mapping[str, Any], command: list[str]
    ) -> None:
        """Write recipe.yaml, ds_config.json and environment.json."""
        if self.rank == 0:
            write_text(self.path / "recipe.yaml", yaml.safe_dump(plain(recipe), sort_keys=False))
            write_json(self.path / "ds_config.json", ds_config)
            write_json(self.path / "environment.json", environment(command))

    def update_summary(self, **facts: Any) -> None:
        """Change some of summary.json's keys."""
        self.summary |= facts
        if self.rank == 0:
            write_json(self.path / "summary.json", self.summary)

    def keep_metrics_until(self, step: int) -> None:
        """Drop the lines after `step` from metrics.jsonl, and a line that a crash cut short."""
        path = self.path / "metrics.jsonl"
        if self.rank != 0 or not path.is_file():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                break
        write_text(path, "".join(kept))

    def append_metrics(self, **values: Any) -> None:
        """Append one line to metrics.jsonl. A value that is not finite is written as null."""
        if self.rank != 0:
            return
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[key] = None
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(values) + "\n")


def plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's dataclasses as what YAML can hold."""
    return json.loads(json.dumps({name: dataclasses.asdict(section) for name, section in recipe.items()}))


def environment(command: list[str]) -> dict[str, Any]:
    """What this run runs on: versions, git commit, hardware, world size, command line."""
    packages = ("torch", "deepspeed", "datasets", "tiktoken", "lm-eval", "wandb", "transformers", "numpy")
    cuda = torch.cuda.is_available()
    return {
        "command": command,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in packages},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }


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
