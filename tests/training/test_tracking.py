"""Weights & Biases without a server: the run is kept offline, at once, and said in one sentence."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import wandb
from wandb.errors import CommError

from tests.training.wandb_runs import no_account, of_kind, offline_folders, records
from training.tracking.tracker import Tracker, TrackingConfig

__all__ = ["no_account"]
KEY = "0123456789" * 4
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def without_account(no_account: None) -> None:
    """No test here may know the machine's W&B account."""


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(requests, "head", called)


@pytest.fixture
def track(tmp_path: Path) -> Callable[..., tuple[Tracker, list[str]]]:
    """track(run_id=None, **tracking keys) -> a tracker of the run folder `run`, and what it said."""

    def start(run_id: str | None = None, **config: Any) -> tuple[Tracker, list[str]]:
        said: list[str] = []
        (tmp_path / "run").mkdir(exist_ok=True)
        facts = {"model": {"norm": "rmsnorm"}, "run": {"parameters": 7}}
        return Tracker(TrackingConfig(**config), tmp_path / "run", run_id, facts, said.append), said

    return start


def finish(tracker: Tracker) -> None:
    """A run of one step, until W&B has it."""
    tracker.log("train", 1, {"loss": 3.5})
    tracker.finish({})
    tracker.wait()


def sending(tracker: Tracker, folder: Path) -> str:
    """The command that sends all parts of the run."""
    return f"send it later with: wandb sync {folder.parent}/offline-run-*-{tracker.id}*"


def test_without_a_key_the_run_is_offline_and_says_how_to_send_it(
    tmp_path: Path, track: Callable[..., Any], no_network: None
) -> None:
    tracker, said = track()
    finish(tracker)
    (folder,) = offline_folders(tmp_path)
    assert said == [f"W&B: offline run (no W&B key); {sending(tracker, folder)}"]
    assert [path.name for path in folder.glob("*.wandb")] == [f"run-{tracker.id}.wandb"]


def test_nothing_is_imported_or_written_before_the_first_log(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from training.tracking.tracker import Tracker, TrackingConfig\n"
        "tracker = Tracker(TrackingConfig(), Path(sys.argv[1]), None, {}, print)\n"
        "assert not {'wandb', 'requests', 'torch'} & sys.modules.keys()\n"
        "assert list(Path(sys.argv[1]).iterdir()) == []\n"
        "tracker.log('train', 1, {'loss': 3.5})\n"
        "tracker.finish({})\n"  # the process waits for it
        "print(tracker.id)"
    )
    (tmp_path / "run").mkdir()
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        cwd=root, env=os.environ | {"WANDB_MODE": "offline"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (folder,) = offline_folders(tmp_path)
    assert done.stdout.splitlines()[0] == folder.name.rpartition("-")[2]


def test_a_resumed_run_keeps_its_id(tmp_path: Path, track: Callable[..., Any]) -> None:
    first, _ = track()
    finish(first)
    second, _ = track(run_id=first.id, name="named")
    finish(second)
    third, _ = track()
    finish(third)
    assert first.id == second.id != third.id and "instead_of" not in second.noted
    names = [of_kind(records(folder), "run")[0]["display_name"] for folder in offline_folders(tmp_path)]
    assert sorted(names) == ["named", "run", "run"]
    ids = [
        path.name.removesuffix(".wandb")
        for path in (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    ]
    assert set(ids) == {f"run-{first.id}", f"run-{third.id}"}


def test_offline_as_asked_needs_no_reason(
    tmp_path: Path, track: Callable[..., Any], no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker, said = track()
    finish(tracker)
    (folder,) = offline_folders(tmp_path)
    assert said == [f"W&B: offline run; {sending(tracker, folder)}"]


def test_disabled_writes_and_says_nothing(
    tmp_path: Path, track: Callable[..., Any], no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker, said = track()
    finish(tracker)
    assert said == [] and list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("where", ["environment", "netrc"])
def test_with_a_key_and_no_server_the_run_is_offline_and_says_why(
    tmp_path: Path, track: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    if where == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    else:
        netrc = Path(os.environ["NETRC"])
        netrc.write_text(f"machine 127.0.0.1\n  login user\n  password {KEY}\n")
        netrc.chmod(0o600)
    tracker, said = track()
    finish(tracker)
    (folder,) = offline_folders(tmp_path)
    because = f"({NOBODY} cannot be reached)"
    assert said == [f"W&B: offline run {because}; {sending(tracker, folder)}"]
    assert any(record["type"] == "history" for record in records(folder))


def test_a_server_that_refuses_makes_the_run_offline_under_a_free_id(
    tmp_path: Path, track: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    init, asked = wandb.init, []

    def refusing(mode: str, **arguments: Any) -> Any:
        asked.append((mode, arguments["id"]))
        if mode == "online":
            raise CommError("API key is not valid (401)\nand a second line")
        return init(mode=mode, **arguments)  # type: ignore[arg-type]

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(requests, "head", lambda *arguments, **options: requests.Response())
    monkeypatch.setattr(wandb, "init", refusing)
    tracker, said = track()
    first = tracker.id
    finish(tracker)
    assert asked == [("online", first), ("offline", tracker.id)]
    assert first != tracker.id == tracker.noted["id"] and tracker.noted["instead_of"] == first
    (folder,) = offline_folders(tmp_path)
    because = "(API key is not valid (401))"
    assert said == [f"W&B: offline run {because}; {sending(tracker, folder)}"]


def test_an_unknown_wandb_mode_is_refused_and_an_empty_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ValueError, match=r"WANDB_MODE is 'ofline' in the environment, but it must be one of"):
        TrackingConfig()
    monkeypatch.setenv("WANDB_MODE", "")
    assert TrackingConfig().settings({}, {})["project"] == "normlab"


GIVEN = {
    "WANDB_PROJECT": "their-project",
    "WANDB_NAME": "their-name",
    "WANDB_TAGS": "a, b,c d",
    "WANDB_RUN_GROUP": "their-group",
    "WANDB_ENTITY": "their-team",
    "WANDB_NOTES": "their notes",
    "WANDB_JOB_TYPE": "their-type",
}


def test_the_environment_speaks_where_the_recipe_is_silent(
    tmp_path: Path, track: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "theirs"))
    (tmp_path / "theirs").mkdir()
    tracker, _ = track()
    finish(tracker)
    (folder,) = sorted((tmp_path / "theirs" / "wandb").glob("offline-run-*"))
    (run,) = (record["run"] for record in records(folder) if record["type"] == "run")
    assert (run["project"], run["display_name"], run["run_group"]) == (
        "their-project", "their-name", "their-group",
    )  # fmt: skip
    assert (run["entity"], run["notes"], run["job_type"]) == ("their-team", "their notes", "their-type")
    assert sorted(run["tags"]) == ["a", "b", "c d"]
    assert tracker.settings == {
        "project": "their-project", "name": "their-name", "group": "their-group", "tags": ["a", "b", "c d"],
        "entity": "their-team", "notes": "their notes", "job_type": "their-type",
    }  # fmt: skip


def test_the_recipe_wins_over_the_environment_and_both_over_what_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    config = TrackingConfig(project="ours", name="mine", tags=("x",))
    found = config.settings({"name": "folder"}, {"project": "old", "group": "old", "tags": ["old"]})
    assert (found["project"], found["name"], found["tags"], found["group"]) == (
        "ours", "mine", ["x"], "their-group",
    )  # fmt: skip
    for name in GIVEN:
        monkeypatch.setenv(name, "")
    defaults = {"name": "folder", "tags": ["rmsnorm"]}
    whole = {"project": "normlab", "job_type": "train", "name": "folder", "tags": ["rmsnorm"]}
    assert TrackingConfig().settings(defaults, {}) == whole
    first = {"project": "old", "name": "old", "tags": ["old"], "entity": "team", "job_type": "old"}
    assert TrackingConfig().settings(defaults, first) == first


def test_a_group_is_the_recipe_files_name_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = TrackingConfig()
    assert silent.in_group("sample", {}).group == "sample"
    assert silent.in_group("recipe", {"group": "sample"}).group == "sample"  # from runs/x/recipe.yaml
    assert TrackingConfig(group="ours").in_group("sample", {"group": "old"}).group == "ours"
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    assert silent.in_group("sample", {"group": "old"}).settings({}, {})["group"] == "theirs"


def test_what_wandb_refuses_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    said: list[str] = []
    tracker = Tracker(TrackingConfig(tags=("x" * 65,)), tmp_path, None, {}, said.append)
    tracker.log("train", 2, {"loss": 3.25})
    finish(tracker)
    (sentence,) = said
    assert sentence.startswith("W&B is lost (") and "the run folder has it all" in sentence
    assert "\n" not in sentence
