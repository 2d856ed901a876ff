"""The sweeps of recipes/sweeps: each run that the agent starts has a folder and a W&B run of its own."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

from tests.eval.tracked_runs import server
from tests.training.wandb_runs import no_account
from tests.training.wandb_server import Run
from training import read_command
from training.tracking.tracker import Tracker, TrackingConfig

__all__ = ["no_account", "server"]
ROOT = Path(__file__).resolve().parents[2]
SWEEPS = sorted((ROOT / "recipes" / "sweeps").glob("*.yaml"))
LAUNCHER = {
    "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
KEYS = {"project", "name", "program", "method", "metric", "parameters", "command"}
"""Of those that W&B's schema of a sweep has, the ones used here; it takes any other silently."""


def command_lines(sweep: dict[str, Any]) -> list[list[str]]:
    """What the agent starts for each run of a grid, as its `_command_run` puts it together."""
    values = [[(key, value) for value in given["values"]] for key, given in sweep["parameters"].items()]
    lines = []
    for chosen in itertools.product(*values):
        words = {"program": [sweep["program"]]}
        words |= create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen}})
        line = []
        for word in create_sweep_command(list(sweep["command"])):
            line += words[word[2:-1]] if word.startswith("${") else [word]
        lines.append(line)
    return lines


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_each_run_of_a_sweep_is_accepted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = load_sweep_config(str(file))
    assert sweep and sweep.keys() == KEYS
    assert sweep["method"] == "grid" and sweep["metric"] == {"name": "val_loss", "goal": "minimize"}
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    for name, value in LAUNCHER.items():
        monkeypatch.setenv(name, value)
    runs = set()
    for number, line in enumerate(command_lines(sweep)):
        assert line[:4] == ["deepspeed", "--num_gpus", "2", "train.py"]
        monkeypatch.setenv("WANDB_RUN_ID", f"run{number}")
        recipe, ds, folder, _ = read_command(line[4:])
        assert str(folder.path).startswith("runs/gpt2_small_fineweb_")
        assert folder.path.name.endswith(f"_run{number}")
        runs.add((recipe.variant, ds.peak_lr, recipe.train.init_seed))
        given = dict(word.removeprefix("--").split("=") for word in line if "=" in word)
        assert given.keys() == sweep["parameters"].keys()
        assert given["model.variant"] == recipe.variant
        assert float(given.get("ds.optimizer.params.lr", ds.peak_lr)) == ds.peak_lr
        assert int(given.get("train.init_seed", 1)) == recipe.train.init_seed
    assert len(runs) == number + 1 >= 10


def test_a_run_of_a_sweep_takes_the_id_that_the_agent_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "given123")
    assert Tracker(TrackingConfig(), tmp_path, None, {}, print).id != "given123"  # outside a sweep
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    assert Tracker(TrackingConfig(), tmp_path, None, {}, print).id == "given123"
    assert Tracker(TrackingConfig(), tmp_path, "before12", {}, print).id == "before12"


def test_the_server_knows_which_sweep_a_run_is_of(
    tmp_path: Path, no_account: None, server: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "given123")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    tracker = Tracker(TrackingConfig(), tmp_path, None, {}, print)
    tracker.log("val", 1, {"loss": 3.0})
    tracker.finish({"val_loss": 3.0})
    tracker.wait()
    (run,) = server.values()
    assert (run.begun["name"], run.begun["sweep"]) == ("given123", "sweep123")
    assert json.loads(run.summary)["val_loss"] == 3.0  # what a sweep minimizes
