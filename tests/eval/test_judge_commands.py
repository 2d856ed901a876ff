"""The commands of a judgment: seen, kept, stopped with it; and folders that two judgments share."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from eval.judging.commands import Ended, command_line
from eval.judging.folders import held_folder
from tests.processes import ENVIRONMENT, ROOT

CHILD = """
import os, signal, sys, time
place = {place!r}
def stop(signum, frame):
    open(place + "/stopped", "w").write(str(signum))
    print("saved", file=sys.stderr)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, lambda *_: os._exit(9))
open(place + "/pid", "w").write(str(os.getpid()))
print("error: what it said", file=sys.stderr, flush=True)
time.sleep({seconds})
sys.exit(2)
"""
PARENT = """
import sys
from eval.judging import commands
commands.command_line = lambda *_: [sys.executable, "-c", {child!r}]
start = commands.Commands()
try:
    ended = start("train", [])
    print("ended", ended.status, ended.reason())
except commands.Interrupted:
    print("interrupted")
"""


def start(place: Path, seconds: float) -> subprocess.Popen[str]:
    child = CHILD.format(place=str(place), seconds=seconds)
    return subprocess.Popen(
        [sys.executable, "-c", PARENT.format(child=child)],
        cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(file: Path) -> str:
    end = time.monotonic() + 60
    while not (file.is_file() and file.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return file.read_text()


def test_what_a_command_says_is_seen_and_its_sentence_kept(tmp_path: Path) -> None:
    printed, seen = start(tmp_path, 0).communicate(timeout=60)
    assert (printed, seen) == ("ended 2 what it said\n", "error: what it said\n")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_reaches_the_command_as_sigterm(tmp_path: Path, signum: signal.Signals) -> None:
    parent = start(tmp_path, 60)
    wait_for(tmp_path / "pid")
    parent.send_signal(signum)
    printed, seen = parent.communicate(timeout=60)
    assert printed == "interrupted\n" and "saved" in seen
    assert (tmp_path / "stopped").read_text() == str(int(signal.SIGTERM))


def test_a_command_does_not_outlive_a_judgment_that_is_killed(tmp_path: Path) -> None:
    parent = start(tmp_path, 60)
    pid = int(wait_for(tmp_path / "pid"))
    parent.kill()
    parent.communicate(timeout=60)
    assert wait_for(tmp_path / "stopped") == str(int(signal.SIGTERM))
    end = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}") and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (2, "a\nerror: no such key\nbar 10%\r", "no such key"),
        (1, "first\rlast line\n\n", "last line"),
        (1, "", "it ended with status 1"),
        (-9, "bar 10%\r", "it was ended by SIGKILL"),
    ],
)
def test_the_reason_is_the_last_error_the_signal_or_the_last_line(
    status: int, said: str, reason: str
) -> None:
    assert Ended(status, said).reason() == reason


def test_several_ranks_are_started_by_the_launcher() -> None:
    words = command_line("train", ["--x", "1"], 3)
    assert words[words.index("--num_accelerators") + 1] == "3" and "deepspeed.launcher.runner" in words
    assert words[-3:] == [str(ROOT / "train.py"), "--x", "1"]
    assert command_line("train", ["--x", "1"], 1)[1:] == [str(ROOT / "train.py"), "--x", "1"]


def test_a_second_judgment_waits_for_the_first_and_finds_its_run(tmp_path: Path) -> None:
    found: list[Path] = []
    said: list[str] = []
    order: list[str] = []

    def find() -> Path | None:
        return found[0] if found else None

    def second() -> None:
        with held_folder(tmp_path, "run", find, said.append) as folder:
            order.append(f"second {folder.name} {bool(found)}")

    with held_folder(tmp_path, "run", find, said.append) as folder:
        thread = threading.Thread(target=second)
        thread.start()
        end = time.monotonic() + 60
        while not said:
            assert time.monotonic() < end
            time.sleep(0.05)
        order.append("first")
        found.append(folder)
    thread.join(timeout=60)
    assert order == ["first", "second run True"]
    assert said == [f"waiting for another judgment, which trains in {folder}"]
