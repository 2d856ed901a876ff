"""The commands that a judgment starts: one at a time, seen on the terminal, stopped with it."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import psutil

ROOT = Path(__file__).resolve().parents[2]
TAIL_BYTES = 20_000
PR_SET_PDEATHSIG = 1  # prctl.h
Command = Literal["preflight", "train", "eval"]


class Interrupted(Exception):
    """The judgment was asked to stop; what was under way has been stopped, and saved if it could be."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (minus a signal's number), and the last that it said."""

    status: int
    said: str

    def reason(self) -> str:
        """The last sentence about what was wrong, or else the signal, or the last line."""
        lines = [line.strip() for line in self.said.replace("\r", "\n").splitlines() if line.strip()]
        if errors := [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]:
            return errors[-1]
        if self.status < 0:
            return f"it was ended by {signal.Signals(-self.status).name}"
        return lines[-1] if lines else f"it ended with status {self.status}"


class Start(Protocol):
    """Runs one of the commands with these words to its end."""

    def __call__(self, command: Command, words: Sequence[str], ranks: int = 1) -> Ended: ...


class Commands:
    """Starts commands of this checkout in processes of their own.

    SIGINT and SIGTERM go on to the command under way as SIGTERM, so that a run saves itself, and the second
    time as SIGKILL; then `Interrupted` is raised. A command ends with this process, however that ends.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = 0
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._note)

    def __call__(self, command: Command, words: Sequence[str], ranks: int = 1) -> Ended:
        """Run a command; what it says on stderr is seen at once, what it prints on stdout is not."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self._process = process = subprocess.Popen(
            command_line(command, words, ranks),
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
            preexec_fn=_stop_with_parent(),
        )
        said: list[bytes] = []
        reader = threading.Thread(target=_show, args=(process, said.append), daemon=True)
        reader.start()
        status = process.wait()
        reader.join(timeout=5)  # what the command has left behind may hold its end of the pipe
        self._process = None
        if self._asked:
            raise Interrupted
        return Ended(status, b"".join(said)[-TAIL_BYTES:].decode(errors="replace"))

    def _note(self, signum: int, frame: object) -> None:
        self._asked += 1
        if self._process is None:
            raise Interrupted
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if self._asked > 1:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                for process in _trainers(psutil.Process(self._process.pid)):
                    process.terminate()


def command_line(command: Command, words: Sequence[str], ranks: int) -> list[str]:
    """What a user would type. -P: a folder `eval` or `data` where it is typed is not ours."""
    if command != "train":
        return [sys.executable, "-P", "-m", "model.preflight" if command == "preflight" else "eval", *words]
    train = [str(ROOT / "train.py"), *words]
    if ranks == 1:
        return [sys.executable, *train]
    launcher = ["-m", "deepspeed.launcher.runner", "--quiet", "--num_accelerators", str(ranks)]
    return [sys.executable, "-P", *launcher, "--master_port", str(_free_port()), *train]


def _trainers(process: psutil.Process) -> list[psutil.Process]:
    """The ranks under a launcher, or else the process itself: not W&B's, which ends after the run."""
    below = process.children(recursive=True)
    launchers = [one for one in below if "deepspeed.launcher.launch" in one.cmdline()]
    return [rank for launcher in launchers for rank in launcher.children()] or [process]


def _show(process: subprocess.Popen[bytes], keep: Callable[[bytes], None]) -> None:
    """Pass on what a command says on stderr, and keep it."""
    assert process.stderr is not None
    while piece := os.read(process.stderr.fileno(), 4096):
        keep(piece)
        with suppress(OSError):  # the terminal is gone
            sys.stderr.buffer.write(piece)
            sys.stderr.flush()


def _stop_with_parent() -> Callable[[], None]:
    library = ctypes.CDLL(None)  # found before the fork, after which little is safe

    def ask() -> None:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
