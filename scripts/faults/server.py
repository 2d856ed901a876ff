"""A process with torch and DeepSpeed imported, of which ranks are forked: that saves their start.

An import of both takes four CPU seconds, a fork some milliseconds; a torture starts hundreds of ranks. What
is forked behaves as a fresh process: it has its own arguments and folder, its output goes to a file, an
uncaught exception goes to `sys.excepthook`, and at its end the interpreter shuts down as it always does.

This is the server, `python -m faults.server DESCRIPTOR`; `Forks` is the client.
"""

import ctypes
import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1]
ROOT = SCRIPTS.parent
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    # Neither another launcher's ranks nor an account of the user's.
    if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    and not name.startswith(("WANDB_", "NORMLAB_"))
} | {
    "WANDB_MODE": "disabled",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",  # tiny models gain nothing by threads, which wait for each other busily
    "OMP_WAIT_POLICY": "passive",
}
LIBRARIES = (
    "deepspeed.checkpoint.ds_to_universal", "deepspeed.module_inject.auto_ep_config",
    "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.runtime.zero.stage3", "datasets",
    "pyarrow.parquet", "requests", "tokenizers", "wandb",
)  # fmt: skip
"""What a run imports on its way."""
PR_SET_PDEATHSIG = 1  # prctl.h


@dataclass(frozen=True)
class Request:
    """A process to be forked.

    Attributes:
        function: called with `arguments`; what it returns is for `sys.exit`.
        arguments: of the function.
        output: the file that stdout and stderr go to.
        environment: all of it.
        group: the process group that it joins, or 0 for one of its own.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    output: Path
    environment: dict[str, str] = field(default_factory=lambda: ENVIRONMENT)
    group: int = 0


class Forks:
    """The fork server, as the process that started it sees it; it ends with that process."""

    def __init__(self) -> None:
        self._statuses: dict[int, int] = {}

    @cached_property
    def _server(self) -> Connection:
        """It is started when it is first needed."""
        ours, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "faults.server", str(theirs.fileno())],
                cwd=SCRIPTS,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the torture, which ends what it has started
            )
        return ours

    def start(self, request: Request) -> int:
        """Fork; returns the process id."""
        self._server.send(request)
        while True:
            pid, status = self._server.recv()
            if status is None:
                assert isinstance(pid, int)
                return pid
            self._statuses[pid] = status

    def status(self, pid: int) -> int | None:
        """The exit status of a process, or minus the signal that ended it; None while it runs."""
        while self._server.poll():
            ended, status = self._server.recv()
            self._statuses[ended] = status
        return self._statuses.get(pid)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns in a process that has torch, as JSON; RuntimeError where it fails."""
        with tempfile.TemporaryDirectory() as folder:
            answer, output = Path(folder, "answer"), Path(folder, "output")
            pid = self.start(Request(_answer, (answer, function, arguments), output))
            while (status := self.status(pid)) is None:
                time.sleep(0.005)
            if status:
                raise RuntimeError(f"{function.__name__} failed:\n{output.read_text()}")
            return json.loads(answer.read_text())

    def close(self) -> None:
        """End the server, and so all that it has forked."""
        if "_server" in vars(self):
            self._server.close()
            self._process.wait()


def _answer(file: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    file.write_text(json.dumps(function(*arguments)))


def preload() -> None:
    """Import what nearly every run imports."""
    for package in ("model", "data", "training"):
        for found in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if not found.name.endswith(("__main__", "modeling_normlab")):
                importlib.import_module(found.name)
    for module in ("train", *LIBRARIES):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a fork would write to every page, and so copy it


def serve(client: Connection) -> Request:
    """Fork for each request until the client is gone; returns in the forked processes alone."""
    running: set[int] = set()
    while True:
        try:
            if client.poll(0.01):
                request = client.recv()
                reap()
                if (pid := os.fork()) == 0:
                    client.close()
                    return request
                running.add(pid)
                client.send((pid, None))
            for pid in list(running):
                # A launcher waits for its ranks now and then: until then how one ended can be read from it.
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended:
                    running.remove(pid)
                    by_itself = ended.si_code == os.CLD_EXITED
                    client.send((pid, ended.si_status if by_itself else -ended.si_status))
        except (EOFError, BrokenPipeError):
            os._exit(0)


def reap() -> None:
    """Let go of the processes that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def do(request: Request) -> Any:
    """What this process was forked for; what it returns is for `sys.exit`."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # with the server, all ends
    with suppress(ProcessLookupError, PermissionError):  # the first of the group has ended already
        os.setpgid(0, request.group)
    output = os.open(request.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(ROOT)
    return request.function(*request.arguments)


def run_module(module: str, words: Sequence[str]) -> Any:
    """`python -m module words`, in a process that was forked."""
    import runpy

    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    # The functions of requests are pickled by the names of their modules, this one's among them.
    from faults import server

    server.preload()
    sys.exit(server.do(server.serve(Connection(int(sys.argv[1])))))
