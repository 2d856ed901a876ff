"""When a rank should stop: it got a signal, or the `deepspeed` command above it is gone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.watch.stop import StopRequest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def handlers() -> object:
    """The handlers that were there before come back."""
    kept = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    for signum, handler in kept.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_asks_to_stop_and_ends_nothing(signum: signal.Signals) -> None:
    request = StopRequest()
    assert not request.asked()
    os.kill(os.getpid(), signum)
    assert request.asked()


def test_without_deepspeeds_launcher_the_parent_may_go(tmp_path: Path) -> None:
    """A parent that is no launcher, such as a shell that started the run in the background."""
    rank = (
        "import os, time; from training.watch.stop import StopRequest\n"
        "request, parent = StopRequest(), os.getppid()\n"
        "open('ready', 'w').close()\n"
        "while os.getppid() == parent: time.sleep(0.01)\n"
        "open('partial', 'w').write(str(request.asked())); os.rename('partial', 'asked')\n"
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
