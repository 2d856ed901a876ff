"""When a rank should stop: a signal came, a limit is reached, or the `deepspeed` command is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model.errors import FAILED, INTERRUPTED, UserError
from tests.processes import fork_this, run_forked
from training.config.recipe import TrainConfig
from training.run.folder import RunFolder
from training.watch.hang import NO_ANSWER_S, Progress
from training.watch.stop import Stopped, StopRequest

ROOT = Path(__file__).resolve().parents[2]


def wait_until_asked(stop: StopRequest) -> None:
    end = time.monotonic() + 60
    while not stop.asked():
        assert time.monotonic() < end
        time.sleep(0.01)


def in_the_loop() -> StopRequest:
    stop = StopRequest()
    stop.start_is_over()
    return stop


def signalled(signum: signal.Signals) -> None:
    stop = in_the_loop()
    stop.check()
    os.kill(os.getpid(), signum)
    wait_until_asked(stop)
    assert stop.request == (f"{signum.name} was received", INTERRUPTED)
    with pytest.raises(Stopped):
        stop.check()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_asks_to_stop_and_ends_nothing(signum: signal.Signals) -> None:
    run_forked(signalled, signum)


def ignoring() -> None:
    for signum in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    stop = in_the_loop()
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(0.2)
    assert not stop.asked()
    os.kill(os.getpid(), signal.SIGUSR1)
    wait_until_asked(stop)


def test_nohup_keeps_sighup_ignored_and_a_wrapper_keeps_no_sigusr1() -> None:
    run_forked(ignoring)


def with_children() -> None:
    stop = in_the_loop()
    started = subprocess.Popen([sys.executable, "-c", "print('ready', flush=True); input()"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert started.stdout and started.stdout.readline() == b"ready\n"
    forked = fork_this(time.sleep, 60)
    for signum in (signal.SIGUSR1, signal.SIGHUP):
        started.send_signal(signum)
        os.kill(forked, signum)
    time.sleep(0.2)
    assert started.poll() is None and os.waitpid(forked, os.WNOHANG) == (0, 0)
    os.kill(forked, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == -signal.SIGTERM
    started.communicate(b"\n", timeout=60)
    assert started.returncode == 0 and not stop.asked()


def test_what_a_rank_starts_outlives_a_jobs_signals_and_not_sigterm() -> None:
    run_forked(with_children)


def limits(folder: Path) -> None:
    run = RunFolder(folder, rank=0)
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    stop = in_the_loop()
    stop.limit(TrainConfig(max_minutes=1, stop_file="STOP"), run, began=now)
    time.sleep(0.7)
    assert not stop.asked()
    (folder / "STOP").touch()
    wait_until_asked(stop)
    assert stop.request == (f"{folder / 'STOP'} exists", INTERRUPTED)
    with pytest.raises(UserError, match=r"train.stop_file is .*STOP, which exists .*`rm .*STOP`"):
        StopRequest().limit(TrainConfig(stop_file="STOP"), run, began=now)
    stop = in_the_loop()
    stop.limit(TrainConfig(max_minutes=1), run, began=now - 61)
    wait_until_asked(stop)
    assert stop.request == ("train.max_minutes, 1, are over", INTERRUPTED)


def test_a_recipes_limits_ask_to_stop(tmp_path: Path) -> None:
    run_forked(limits, tmp_path)


def first_request() -> None:
    stop = in_the_loop()
    stop.ask("the disk is full", FAILED)
    stop.ask("SIGTERM was received")
    assert stop.of_all_ranks() == ("the disk is full", FAILED)


def test_the_first_request_stays() -> None:
    run_forked(first_request)


def test_a_step_may_take_twenty_of_its_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("training.watch.hang.time.perf_counter", lambda: now[0])
    progress = Progress()
    assert progress.limit_s() == float("inf")  # a start takes as long as it takes
    progress.enter("loop")
    for seconds, limit in ((0.5, NO_ANSWER_S), (7, 140), (0.1, 140), (600, progress.longest_s)):
        with progress.phase("step"):
            now[0] += seconds
            progress.beat()
            assert progress.limit_s() == limit
        assert progress.limit_s() == progress.longest_s
    with progress.phase("step"):
        for _ in range(64):
            now[0] += 1
            progress.beat()
        assert progress.limit_s() == NO_ANSWER_S


def test_a_suspended_process_has_waited_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("training.watch.hang.time.monotonic", lambda: now[0])
    progress = Progress()
    for passed in (0.5, 0.5, 7200, 0.5):
        now[0] += passed
        progress.tick()
    assert progress.waited_s < 5
    progress.beat()
    progress.tick()
    assert progress.waited_s == 0


def test_without_deepspeeds_launcher_the_parent_may_go(tmp_path: Path) -> None:
    """A parent that is no launcher, such as a shell that started the run in the background."""
    rank = (
        "import os, time; from training.watch.stop import StopRequest\n"
        "stop, parent = StopRequest(), os.getppid()\n"
        "stop.start_is_over()\n"
        "open('ready', 'w').close()\n"
        "while os.getppid() == parent: time.sleep(0.01)\n"
        "time.sleep(1.5)\n"
        "open('partial', 'w').write(str(stop.asked())); os.rename('partial', 'asked')\n"
    )
    start = f"import subprocess, sys, time, os; subprocess.Popen([sys.executable, '-c', {rank!r}])\n"
    wait = "while not os.path.exists('ready'): time.sleep(0.01)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", start + wait], cwd=tmp_path, env=environment, check=True, timeout=60
    )
    for _ in range(6000):
        if (tmp_path / "asked").exists():
            break
        signal.sigtimedwait([], 0.01)
    assert (tmp_path / "asked").read_text() == "False"
