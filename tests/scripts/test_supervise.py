"""A command that fails is started again as long as that helps; one that a signal stops is not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ENVIRONMENT, ROOT

FAKE = """
import json, os, signal, sys, time
from pathlib import Path

script, run_dir = json.loads(sys.argv[1]), Path(sys.argv[3])
run_dir.mkdir(parents=True, exist_ok=True)
starts = run_dir / "starts"
number = len(starts.read_text()) if starts.exists() else 0
with starts.open("a") as file:
    file.write("r" if "--restart" in sys.argv else "x")
what = script[min(number, len(script) - 1)]
if "aside" in what and "--restart" in sys.argv:
    aside = run_dir / f"before_restart_{number}"
    aside.mkdir()
    for name in {"metrics.jsonl", "summary.json"} & set(os.listdir(run_dir)):
        (run_dir / name).rename(aside / name)
if "step" in what:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": what["step"]}) + chr(10))
if "summary" in what:
    (run_dir / "summary.json").write_text(json.dumps(what["summary"]))
if "waits" in what:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (run_dir / "waits").touch()
    time.sleep(60)
if "signal" in what:
    os.kill(os.getpid(), what["signal"])
sys.exit(what.get("status", 0))
"""


def supervised(
    folder: Path, script: list[dict[str, Any]], *options: str, restart: str = "", **environment: str
) -> subprocess.Popen[str]:
    """A command whose starts do what `script` says, one after the other, the last again and again."""
    (folder / "fake.py").write_text(FAKE)
    command = [sys.executable, str(folder / "fake.py"), json.dumps(script), "--run_dir", str(folder / "run")]
    command += [restart] if restart else []
    return subprocess.Popen(
        [sys.executable, "scripts/supervise.py", "--wait", "0", *options, "--", *command],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], folder: Path) -> tuple[int, int, list[str]]:
    """Its exit status, how often the command was started, and what was said."""
    _, said = process.communicate(timeout=60)
    return process.returncode, len((folder / "run" / "starts").read_text()), said.splitlines()


def test_it_is_started_again_until_it_is_finished(tmp_path: Path) -> None:
    failed = {"summary": {"status": "failed", "error": "ValueError: no"}, "step": 3, "status": 1}
    script = [failed, {"signal": signal.SIGKILL}, {"status": 247}, {"summary": {"status": "finished"}}]
    status, starts, said = ended(supervised(tmp_path, script), tmp_path)
    assert (status, starts) == (0, 4), said
    killed = "supervise: the command ended without a word: by SIGKILL, at step 3; it is started again in 0 s"
    assert said == [
        "supervise: the command failed: ValueError: no, at step 3; it is started again in 0 s",
        killed,
        killed,
        "supervise: the command is finished",
    ]


def test_it_is_given_up_after_starts_without_progress_only(tmp_path: Path) -> None:
    script = [{"status": 1}, {"status": 1}, {"status": 1, "step": 5}, {"status": 1, "step": 4}]
    status, starts, said = ended(supervised(tmp_path, script, "--max_restarts", "2"), tmp_path)
    assert (status, starts) == (1, 6), said
    assert said[-1] == (
        "supervise: the command ended with status 1; 3 starts in a row came no further than step 5: "
        "it is given up"
    )


@pytest.mark.parametrize("is_there", [True, False])
def test_what_restart_has_begun_goes_on_in_later_starts(tmp_path: Path, is_there: bool) -> None:
    """One that fails before it has put the run aside leaves that to the next; progress counts from there."""
    if is_there:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "train", "step": 900}\n')
        (tmp_path / "run" / "summary.json").write_text('{"status": "finished"}')
    begins: list[dict[str, Any]] = [{"status": 0}] if is_there else []  # its launcher was killed
    begins += [{"aside": True, "step": 5, "status": 1}, {"aside": True, "step": 6, "status": 1}]
    script = [*begins, {"step": 7, "status": 1}, {"summary": {"status": "finished"}}]
    process = supervised(tmp_path, script, "--max_restarts", "1", restart="--restart")
    status, _, said = ended(process, tmp_path)
    assert status == 0, said
    assert (tmp_path / "run" / "starts").read_text() == ("rrxxx" if is_there else "rxxx")
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert steps == [5, 6, 7]


@pytest.mark.parametrize("status", [2, 3])
def test_a_refusal_and_a_divergence_are_not_repeated(tmp_path: Path, status: int) -> None:
    script = [{"status": status}]
    assert ended(supervised(tmp_path, script), tmp_path)[:2] == (status, 1)


def test_a_status_of_0_is_not_believed_of_a_run_that_is_not_finished(tmp_path: Path) -> None:
    script = [{"summary": {"status": "running"}}, {"summary": {"status": "diverged"}}]
    assert ended(supervised(tmp_path, script), tmp_path)[:2] == (3, 2)


def test_a_stop_that_nobody_here_asked_for_goes_on(tmp_path: Path) -> None:
    script = [{"status": 75, "step": 1}, {"summary": {"status": "finished"}}]
    assert ended(supervised(tmp_path, script), tmp_path)[:2] == (0, 2)


def test_a_share_of_the_work_and_slurm_end_with_a_stop(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("train: {max_minutes: 5}")
    assert ended(supervised(tmp_path, [{"status": 75}]), tmp_path)[:2] == (75, 1)
    (tmp_path / "run" / "recipe.yaml").write_text("train: {stop_file: STOP}")
    (tmp_path / "run" / "STOP").touch()
    assert ended(supervised(tmp_path, [{"status": 75}]), tmp_path)[:2] == (75, 2)
    (tmp_path / "run" / "STOP").unlink()
    assert ended(supervised(tmp_path, [{"status": 75}], SLURM_JOB_ID="7"), tmp_path)[:2] == (75, 3)


def test_a_signal_is_passed_on_and_nothing_follows(tmp_path: Path) -> None:
    process = supervised(tmp_path, [{"waits": True}])
    end = time.monotonic() + 60
    while not (tmp_path / "run" / "waits").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    status, starts, said = ended(process, tmp_path)
    assert (status, starts) == (75, 1)
    assert said == ["supervise: SIGTERM was received, and the command was stopped and has saved"]


def test_a_signal_during_the_wait_ends_it(tmp_path: Path) -> None:
    process = supervised(tmp_path, [{"status": 1}], "--wait", "600")
    assert process.stderr and "started again in 600 s" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert ended(process, tmp_path)[:2] == (75, 1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "no command was given"),
        (["--", "python", "train.py"], "the command has no --run_dir"),
        (["--max_restarts", "-1", "--", "a", "--run_dir", "b"], "--max_restarts must be at least 0"),
    ],
)
def test_what_cannot_be_supervised_gets_one_sentence(words: list[str], sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/supervise.py", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1
