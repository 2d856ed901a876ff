"""A start that comes to no training: what it leaves, and what it leaves alone."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from model.errors import FAILED, REFUSED, LauncherError, UserError
from training.run.folder import RunFolder
from training.watch.endings import end_start


def files(folder: Path) -> dict[str, bytes]:
    """All but locks."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def began_now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run that was stopped."""
    run = RunFolder(tmp_path / "run", 0)
    run.update_summary(status="interrupted", step=1)
    run.append_metrics(kind="train", step=1, loss=1.0)
    return run.path


@pytest.mark.parametrize("error", [UserError("no such key"), LauncherError("port 1 is taken")])
def test_a_refusal_leaves_nothing(begun: Path, capsys: pytest.CaptureFixture[str], error: UserError) -> None:
    before = files(begun)
    assert end_start(RunFolder(begun, 0), error, None, began_now()) == REFUSED
    assert capsys.readouterr().err == f"error: {error}\n" and files(begun) == before


def test_a_failure_is_said_and_left_with_its_traceback(
    begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        raise OSError("the disk is gone")
    except OSError as error:
        assert end_start(RunFolder(begun, 0), error, None, began_now()) == FAILED
    assert capsys.readouterr().err == "error: the disk is gone\n"
    written = {name: json.loads(content) for name, content in files(begun).items() if ".json" in name[-5:]}
    failure, summary = written["failure.json"], written["summary.json"]
    assert (failure["rank"], failure["exception"], failure["step"]) == (0, "OSError", 1)
    assert failure["sentence"] == summary["error"] == "OSError: the disk is gone"
    assert summary["status"] == "failed" and summary["step"] == 1
    assert failure["traceback"] == (begun / failure["log"]).read_text()


def test_another_error_goes_on(begun: Path) -> None:
    with pytest.raises(KeyError, match="a bug"):
        end_start(RunFolder(begun, 0), KeyError("a bug"), None, began_now())
    assert json.loads((begun / "failure.json").read_text())["exception"] == "KeyError"


@pytest.mark.parametrize("whose", ["at work", "to be put aside", "not to be trained"])
def test_a_run_that_is_not_this_starts_own_is_left_alone(
    begun: Path, capsys: pytest.CaptureFixture[str], whose: str
) -> None:
    other: Any = RunFolder(begun, 0)
    if whose == "at work":
        other.claim()
    before = files(begun)
    run = RunFolder(begun, 0, restarts=whose == "to be put aside")
    assert (
        end_start(None if whose == "not to be trained" else run, OSError("gone"), None, began_now()) == FAILED
    )
    assert capsys.readouterr().err == "error: gone\n" and files(begun) == before
