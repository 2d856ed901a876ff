"""Offline W&B runs, read back with W&B's own reader."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No W&B key, setting or proxy of the machine's, and no state of an earlier test."""
    for name in os.environ:
        if name.startswith("WANDB_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home))
    monkeypatch.chdir(home)
    wandb.teardown()
    yield
    wandb.teardown()


def offline_folders(tmp_path: Path) -> list[Path]:
    """The parts of the run in the folder `run`, in the order of their starts."""
    return sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))


def records(folder: Path) -> list[dict[str, Any]]:
    """What W&B's own reader finds in an offline run."""
    result = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in result.stdout.splitlines()]


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The records of one kind, such as run, history, metric, alert or exit."""
    return [record[kind] for record in found if record["type"] == kind]


def rows(found: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What was logged, by W&B's own step."""
    items = (record["item"] for record in of_kind(found, "history"))
    return {
        item["_step"]: {key: value for key, value in item.items() if not key.startswith("_")}
        for item in items
    }


def summary_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary at the end."""
    summary: dict[str, Any] = {}
    for record in of_kind(found, "summary"):
        summary |= record["update"]
    return summary


def sync(command: str, server: str) -> str:
    """Type the command that the run gave, and what it says."""
    environment = os.environ | {"WANDB_BASE_URL": server, "WANDB_API_KEY": "0123456789" * 4}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, env=environment | {"PATH": path}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
