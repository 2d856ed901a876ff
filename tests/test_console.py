"""What reaches the terminal and what the log file, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from model.errors import UserError, print_error

ROOT = Path(__file__).resolve().parents[1]
BEGINNING = """
import os, subprocess, sys
from pathlib import Path
from training.run.console import Console
print("before")
console = Console(Path(sys.argv[1]), silent="silent" in sys.argv)
"""


def run(folder: Path, code: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """A process that makes a Console and runs `code`: what reached its terminal, and its log."""
    log = folder / "logs" / "rank0.log"
    result = subprocess.run(
        [sys.executable, "-c", BEGINNING + code, str(log), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return result, log.read_text()


def test_whatever_the_process_and_its_children_write_goes_to_the_log_alone(tmp_path: Path) -> None:
    result, log = run(tmp_path, """
import warnings
print("from print")
print("from print to stderr", file=sys.stderr)
os.write(1, b"from C\\n")
os.write(2, b"from C to stderr\\n")
subprocess.run(["sh", "-c", "echo from a child; echo from a child to stderr >&2"])
warnings.warn("from a warning")
""")  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "before\n", "")
    *lines, warning = log.splitlines()
    assert sorted(lines) == [
        "from C", "from C to stderr", "from a child", "from a child to stderr", "from print",
        "from print to stderr",
    ]  # fmt: skip
    assert warning.endswith("UserWarning: from a warning")


def test_a_silent_rank_says_what_is_wrong_with_its_launch(tmp_path: Path) -> None:
    code = """
from model.errors import LauncherError, UserError
console.say("not said")
console.fail(UserError("what all ranks find"))
console.say_by_any_rank("rank 1 waits")
sys.exit(console.fail(LauncherError("no rank 0")))
"""
    result, log = run(tmp_path, code, "silent")
    assert (result.returncode, result.stderr, log) == (2, "rank 1 waits\nerror: no rank 0\n", "")


def test_sentences_and_failures_reach_stderr_and_not_the_log(tmp_path: Path) -> None:
    result, log = run(tmp_path, """
console.say("step 1: fine")
status = console.fail(ValueError("model.norm is wrong"))
console.say("done")
sys.exit(status)
""")  # fmt: skip
    assert result.returncode == 2 and result.stdout == "before\n"
    assert result.stderr == "step 1: fine\nerror: model.norm is wrong\ndone\n"
    assert log == ""


def test_a_bar_reaches_stderr_and_a_sentence_has_its_own_line_beside_it(tmp_path: Path) -> None:
    result, log = run(tmp_path, """
bar = console.bar("rmsnorm", total=4000, unit="tok")
bar.update(2000)
console.say("halfway")
bar.update(2000)
bar.close()
""")  # fmt: skip
    assert result.returncode == 0 and log == ""
    drawn = result.stderr.replace("\r", "\n").split("\n")
    assert "halfway" in [line.strip() for line in drawn]
    last = [line for line in drawn if line.startswith("rmsnorm")][-1]
    assert "100%" in last and "4.00k/4.00k" in last and "tok/s" in last


def test_a_silent_rank_says_nothing_and_still_logs(tmp_path: Path) -> None:
    result, log = run(tmp_path, """
console.say("a sentence")
bar = console.bar("rmsnorm", total=10)
bar.update(10)
bar.close()
status = console.fail("refused")
print("noise")
sys.exit(status)
""", "silent")  # fmt: skip
    assert (result.returncode, result.stderr) == (2, "")
    assert log == "noise\n"


@pytest.mark.parametrize("rank", [[], ["silent"]], ids=["rank 0", "a silent rank"])
def test_an_uncaught_exception_is_one_line_with_its_traceback_in_the_log(
    tmp_path: Path, rank: list[str]
) -> None:
    code = """
def inner():
    raise RuntimeError("CUDA out of memory\\nTried to allocate 2 GiB")
inner()
"""
    result, log = run(tmp_path, code, *rank)
    assert result.returncode == 1
    where = tmp_path / "logs" / "rank0.log"
    assert result.stderr == f"RuntimeError: CUDA out of memory (traceback in {where})\n"
    assert log.startswith("Traceback (most recent call last)")
    assert "in inner" in log and "Tried to allocate 2 GiB" in log


def test_an_exception_without_words_is_named_too(tmp_path: Path) -> None:
    result, log = run(tmp_path, "assert 1 == 2")
    assert result.returncode == 1
    assert result.stderr.startswith("AssertionError") and result.stderr.count("\n") == 1
    assert "AssertionError" in log


def test_a_second_start_adds_to_the_log(tmp_path: Path) -> None:
    run(tmp_path, "print('first')")
    _, log = run(tmp_path, "print('second')")
    assert log == "first\nsecond\n"


@pytest.mark.parametrize(("rank", "printed"), [(None, True), ("0", True), ("1", False), ("10", False)])
def test_before_a_run_folder_is_known_only_rank_0_tells_of_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str | None, printed: bool
) -> None:
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
    assert print_error(UserError("model.norm is wrong")) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ("error: model.norm is wrong\n" if printed else "")
