"""`python -m training.run`: in words and as an exit status where a run stands, and why it ended."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eval.evidence.results import read_run
from tests.training.test_run_reader import write_checkpoint
from training.run.__main__ import main
from training.watch.standing import DEAD, status_now

ROOT = Path(__file__).resolve().parents[2]
FAILURE = {
    "rank": 1, "host": "node7", "time": 1.0, "signal": "SIGKILL", "exception": None, "step": 41,
    "sentence": "rank 1 on node7 was ended by SIGKILL", "traceback": "", "log": "logs/rank1.log",
}  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run on two ranks that has made 41 of 100 steps and whose processes are gone."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank0.lock").touch()
    lines = [json.dumps({"kind": "train", "step": step}) for step in (40, 41)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "train", "st')
    words = ["--local_rank=0", "--restart", "--config", "my recipe.yaml"]
    (tmp_path / "environment.json").write_text(json.dumps({"command": words, "world_size": 2, "gpus": []}))
    write_checkpoint(tmp_path, 40)
    return tmp_path


@contextmanager
def trained(run_dir: Path) -> Iterator[None]:
    """As long as its rank 0 lives."""
    with (run_dir / "logs" / "rank0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def summarize(run_dir: Path, status: str, age_s: float = 5.0, **facts: Any) -> None:
    summary = {"status": status, "variant": "vanilla", "step": 40, "steps": 100} | facts
    (run_dir / "summary.json").write_text(json.dumps(summary | {"heartbeat": time.time() - age_s}))


def told(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main([str(run_dir)])
    return status, capsys.readouterr().out


NEXT = "next: deepspeed --num_accelerators 2 train.py --config 'my recipe.yaml'"


@pytest.mark.parametrize(
    ("status", "exit_status", "words"),
    [
        ("finished", 0, "is finished at step 41 of 100"),
        ("interrupted", 75, "is stopped and saved at step 41 of 100"),
        ("diverged", 3, "diverged at step 41 of 100"),
        ("failed", 1, "failed at step 41 of 100"),
        ("running", 1, "is dead: its processes ended without a word"),
    ],
)
def test_each_ending_has_its_words_and_its_status(
    run_dir: Path, capsys: pytest.CaptureFixture[str], status: str, exit_status: int, words: str
) -> None:
    summarize(run_dir, status)
    code, said = told(run_dir, capsys)
    assert code == exit_status and said.startswith(f"{run_dir} {words}"), said
    assert "step_00000040, all of its files are there" in said and "last sign of life: 5 s ago" in said
    assert (NEXT in said) == (status in ("interrupted", "failed", "running"))


def test_a_run_under_way_is_running_and_one_without_heartbeat_hangs(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with trained(run_dir):
        summarize(run_dir, "running")
        assert told(run_dir, capsys)[1].startswith(f"{run_dir} is running at step 41 of 100")
        summarize(run_dir, "running", age_s=600)
        status, said = told(run_dir, capsys)
        assert status == 0 and "hangs, or its process is stopped" in said and "10 min ago" in said
        summarize(run_dir, "failed")
        assert "starts, or is about to end" in told(run_dir, capsys)[1]


def test_the_rank_that_failed_first_is_named_with_host_signal_and_log(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summarize(run_dir, "failed", error="of the summary", failed_rank=0)
    assert "why: of the summary" in told(run_dir, capsys)[1]  # where the disk had no place for the file
    (run_dir / "failure.json").write_text(json.dumps(FAILURE))
    said = told(run_dir, capsys)[1]
    assert "why: rank 1 on node7 was ended by SIGKILL" in said
    log = run_dir / "logs" / "rank1.log"
    assert f"first to fail: rank 1, host node7, signal SIGKILL, after step 41; its log is {log}" in said


def test_a_damaged_checkpoint_is_named_and_the_one_before_it(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summarize(run_dir, "running")
    (write_checkpoint(run_dir, 60) / "model.pt").write_bytes(b"")
    (run_dir / "checkpoints" / "damaged_step_00000050").mkdir()
    said = told(run_dir, capsys)[1]
    assert "step_00000060 is damaged" in said and "the run goes on from step_00000040" in said
    assert "damaged before: " in said and "damaged_step_00000050" in said


def test_changes_of_the_recipe_and_runs_put_aside_are_named(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summarize(run_dir, "interrupted")
    said = told(run_dir, capsys)[1]
    assert "changed under way" not in said and "--restart" not in said
    changes = [
        {"step": 1200, "key": "ds.optimizer.params.lr", "before": 0.001, "now": 0.01},
        {"step": 1300, "key": "schedule.shape", "before": "cosine", "now": None},
    ]
    summarize(run_dir, "interrupted", recipe_changes=changes)
    for number in (10, 2):
        (run_dir / f"before_restart_{number}").mkdir()
    (run_dir / "before_restart_x").mkdir()
    said = told(run_dir, capsys)[1]
    assert (
        "changed under way: ds.optimizer.params.lr is 0.01 from step 1,200 on, after 0.001; "
        'schedule.shape is null from step 1,300 on, after "cosine"\n'
    ) in said
    before = [str(run_dir / f"before_restart_{number}") for number in (2, 10)]
    assert f"begun again by --restart; what was here before: {', '.join(before)}\n" in said
    assert main([str(run_dir), "--json"]) == 75
    found = json.loads(capsys.readouterr().out)
    assert found["changes"] == changes and found["put_aside"] == before


def test_sizes_tell_nothing_of_a_flipped_bit_and_checksums_do(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summarize(run_dir, "interrupted")
    (run_dir / "checkpoints" / "step_00000040" / "model.pt").write_bytes(b"weighty")
    assert "all of its files are there" in told(run_dir, capsys)[1]
    assert main([str(run_dir), "--checksums"]) == 75
    assert "is damaged (model.pt has another checksum); none is whole" in capsys.readouterr().out


def test_programs_get_the_same_as_json(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summarize(run_dir, "failed")
    (run_dir / "failure.json").write_text(json.dumps(FAILURE))
    assert main([str(run_dir), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["failure"] == FAILURE and found["exit_status"] == 1 and not found["is_alive"]
    assert (found["status"], found["step"], found["steps"]) == ("failed", 41, 100)


def test_where_no_run_is_one_sentence_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"error: there is no run folder {tmp_path / 'nowhere'}\n"


def test_what_was_killed_is_not_shown_as_running(run_dir: Path) -> None:
    summarize(run_dir, "running")
    assert read_run(run_dir).summary["status"] == DEAD
    with trained(run_dir):
        assert read_run(run_dir).summary["status"] == "running"
    (run_dir / "logs" / "rank0.lock").unlink()  # a copy without the logs: the heartbeat tells
    assert read_run(run_dir).summary["status"] == "running"
    summarize(run_dir, "running", age_s=600)
    assert read_run(run_dir).summary["status"] == DEAD


def test_a_folder_that_cannot_be_written_is_read_all_the_same(run_dir: Path) -> None:
    summarize(run_dir, "running")
    os.chmod(run_dir / "logs" / "rank0.lock", 0o444)
    assert status_now(run_dir, {"status": "running"}) == DEAD


def test_it_needs_no_torch(run_dir: Path) -> None:
    summarize(run_dir, "finished")
    code = (
        "import sys; from training.run.__main__ import main; main(sys.argv[1:]);"
        "print(*sys.modules.keys() & {'torch', 'pandas', 'deepspeed', 'numpy'}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run_dir)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "" and "is finished" in done.stdout
