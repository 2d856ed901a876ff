"""A disk that takes no more ends a run with one sentence and status 1; then it goes on as it would have."""

import errno
import json
import os
import pydoc_data.topics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from model.errors import UserError
from tests.jobs import (
    Started,
    arguments,
    command,
    lines_of,
    make_job,
    run,
    steps_of,
    summary_of,
    train_main,
)
from tests.processes import ENVIRONMENT, ROOT, run_forked
from training.checkpoints.found import damage
from training.watch.disk import check_writable, disk_sentence, keep_reserve, on_full_disk, reserve_of
from training.watch.supervisor import ranks_below

LAST = "step_00000006"
"""The last checkpoint, after that of step 3."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"), list(pydoc_data.topics.topics.values()), 6)


def on_a_disk_that_fills(words: list[str]) -> int:
    """train.py; with its fifth line of metrics the disk is full, until the reserve is given back."""
    import train
    from model.files import append_text, write_json
    from training.run import folder
    from training.watch import failures

    run_dir = Path(words[words.index("--run_dir") + 1])
    is_full = False

    def append(path: Path, text: str) -> None:
        nonlocal is_full
        is_full = path.exists() and len(path.read_text().splitlines()) >= 4
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        append_text(path, text)

    def write(path: Path, value: Any) -> None:
        if is_full and reserve_of(run_dir).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_json(path, value)

    vars(folder).update(append_text=append, write_json=write)
    vars(failures).update(write_json=write)
    return train.main(words)


def test_a_full_disk_ends_a_run_with_a_sentence_and_costs_no_number(job: Path) -> None:
    words = arguments(job, job / "run")
    ended = run(words, main=on_a_disk_that_fills)
    assert ended.returncode == 1
    (sentence,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in ended.stderr
    metrics = job / "run" / "metrics.jsonl"
    assert sentence.startswith(f"error: {metrics} cannot be written: no space is left there (")
    assert sentence.endswith("iB free); make space, and the same command goes on from the last checkpoint")
    summary, failure = summary_of(job / "run"), json.loads((job / "run" / "failure.json").read_text())
    assert summary["status"] == "failed" and f"error: {summary['error']}" == sentence
    assert (failure["sentence"], failure["exception"], failure["step"]) == (summary["error"], "OSError", 4)
    assert "No space left on device" in failure["traceback"]
    assert "No space left on device" in (job / "run" / "logs" / "rank0.log").read_text()
    assert [path.name for path in (job / "run" / "checkpoints").glob("*step*")] == ["step_00000003"]
    assert not reserve_of(job / "run").exists()
    assert run(words).returncode == 0 and run(arguments(job, job / "whole")).returncode == 0
    assert steps_of(job / "run") == steps_of(job / "whole")
    assert json.loads((job / "run" / "failure_1.json").read_text()) == failure
    assert not (job / "run" / "failure.json").exists() and "error" not in summary_of(job / "run")


def with_a_rank_that_cannot_write(words: list[str]) -> int:
    """train.py, whose rank 1 cannot open its file of the last checkpoint, or cannot write it to its end."""
    from training.checkpoints import files
    from training.checkpoints.files import HashedFile

    code, whole = int(os.environ["CODE"]), HashedFile.write
    is_opening = code == errno.EACCES

    class Failing(HashedFile):
        def __init__(self, path: Path) -> None:
            self.fails = os.environ["RANK"] == "1" and f".{LAST}.partial" in str(path)
            if self.fails and is_opening:
                raise OSError(code, os.strerror(code), str(path))
            super().__init__(path)

        def write(self, content: Any) -> int:
            if self.fails:
                whole(self, memoryview(content)[:10])
                raise OSError(code, os.strerror(code))
            return whole(self, content)

    vars(files)["HashedFile"] = Failing
    return train_main(words)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_checkpoint_that_one_rank_cannot_write_ends_all(
    job: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    run_dir = job / f"one_rank_{code}"
    monkeypatch.setitem(ENVIRONMENT, "CODE", str(code))
    started = Started(arguments(job, run_dir), 2, False, with_a_rank_that_cannot_write)
    started.wait()
    said = started.printed()[1]
    assert [process.returncode for process in started._processes] == [1, 0], said  # rank 0 says how
    (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")]
    start = f"error: {run_dir}/checkpoints/{LAST} could not be written ({os.strerror(code)}); what was saved"
    assert sentence.startswith(start) and "Traceback" not in said
    assert said.splitlines()[-1].endswith(
        "has failed: the same command goes on from checkpoints/step_00000003"
    )
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_00000003"]
    assert damage(run_dir / "checkpoints" / "step_00000003") is None
    summary, failure = summary_of(run_dir), json.loads((run_dir / "failure.json").read_text())
    assert (summary["status"], summary["step"], summary["failed_rank"]) == ("failed", 6, 1)
    assert summary["last_checkpoint"] == "checkpoints/step_00000003"
    assert f"error: {failure['sentence']}" == f"error: {summary['error']}" == sentence
    assert (failure["rank"], failure["step"]) == (1, 6) and os.strerror(code) in failure["traceback"]


def test_the_last_words_get_the_space_of_the_reserve(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    keep_reserve(tmp_path)
    assert reserve_of(tmp_path).stat().st_blocks * 512 >= 256 * 1024
    tries = []

    def write() -> None:
        tries.append(reserve_of(tmp_path).exists())
        if tries[-1]:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    on_full_disk(tmp_path, write)
    assert tries == [True, False]


@pytest.mark.parametrize(
    ("code", "file", "words"),
    [
        (errno.ENOSPC, "samples.jsonl", "samples.jsonl cannot be written: no space is left there ("),
        (errno.EDQUOT, None, "a file cannot be written: the quota there is used up ("),
        (errno.EROFS, "summary.json", "summary.json cannot be written: it is read-only"),
        (errno.EACCES, "logs/new", "logs/new cannot be written: permission is denied"),
        (errno.EACCES, "/data/shard.parquet", None),
        (errno.ECONNRESET, None, None),
    ],
)
def test_errors_of_the_disk_get_a_sentence_and_no_others(
    tmp_path: Path, code: int, file: str | None, words: str | None
) -> None:
    path = None if file is None else str(tmp_path / file)
    error = OSError(code, os.strerror(code), path)
    for one in (error, RuntimeError("a library's")):
        one.__cause__ = None if one is error else error
        said = disk_sentence(one, tmp_path)
        assert said is None if words is None else (said and words in said)


def refuse_as_nobody(folder: Path) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)  # root may write anywhere
    for path in (folder, folder / "new" / "run"):
        with pytest.raises(UserError, match=f"nothing can be written to {folder}: make it writable"):
            check_writable(path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o555)
    for path in (tmp_path, *list(tmp_path.parents)[:-2]):
        path.chmod(0o755)  # pytest keeps its folders to itself
    run_forked(refuse_as_nobody, folder)
    check_writable(tmp_path / "new")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"file is no folder, and nothing can be below it"):
            check_writable(path)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_supervised_run_that_is_killed_at_any_moment_loses_nothing(job: Path) -> None:
    words = arguments(job, job / "supervised")
    process = subprocess.Popen(
        [sys.executable, "scripts/supervise.py", "--wait", "0", "--", *command(words, ranks=2)],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = job / "supervised" / "metrics.jsonl"
    killed = 0
    while process.poll() is None:
        if not killed and metrics.exists() and len(metrics.read_text().splitlines()) > 2:
            with suppress(psutil.Error):  # it ends now
                rank = ranks_below(process.pid)[time.time_ns() % 2]
                rank.kill()
                killed += 1
        time.sleep(0.05)
    assert process.stderr
    said = process.stderr.read()
    assert process.returncode == 0 and killed >= 1, said
    assert "was ended by SIGKILL" in said and "it is started again" in said
    assert run(arguments(job, job / "undisturbed"), ranks=2).returncode == 0
    assert steps_of(job / "supervised") == steps_of(job / "undisturbed")
    assert summary_of(job / "supervised")["status"] == "finished" and lines_of(job / "supervised")
