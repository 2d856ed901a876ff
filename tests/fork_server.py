"""A process with torch and DeepSpeed imported, from which tests fork others instead of starting interpreters.

An import of both takes four CPU seconds, a fork some milliseconds. What is forked behaves as a fresh process
that was started with the server's environment: it has its own session, arguments, folder, stdout and stderr,
an uncaught exception goes to `sys.excepthook`, and at its end the interpreter shuts down as it always does.
What it shares with its siblings, unlike fresh processes, is the seed of Python's string hashes.

This is the server, `python -m tests.fork_server DESCRIPTOR`; tests call `tests.processes.fork`.
"""

import ctypes
import gc
import os
import signal
import socket
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # prctl.h


def preload() -> None:
    """Import what nearly every job imports."""
    import pyarrow.parquet  # noqa: F401
    import tokenizers  # noqa: F401

    import train  # noqa: F401

    # A fork has one thread, which may wait for ever for what another held. Arrow's jemalloc sees to its own.
    threads = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
    assert len([name for name in threads if name != "jemalloc_bg_thd\n"]) == 1, threads
    gc.collect()
    gc.freeze()  # a collection in a fork would write to every page, and so copy it


def serve(requests: socket.socket) -> Connection:
    """Fork for each request until the tests' process is gone; returns in the forked processes alone."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1, 3)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            return supervise(Connection(descriptors[0]), descriptors[1:])
        for descriptor in descriptors:
            os.close(descriptor)


def supervise(client: Connection, outputs: list[int]) -> Connection:
    """Fork the process that does the job, where this returns; tell the client its number and how it ends."""
    die_with_the_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        die_with_the_parent()
        os.setsid()
        for number, descriptor in enumerate(outputs, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        return client
    for descriptor in outputs:
        os.close(descriptor)
    client.send(pid)
    _, status = os.waitpid(pid, 0)
    client.send(os.waitstatus_to_exitcode(status))
    os._exit(0)


def die_with_the_parent() -> None:
    """When the tests' process is killed, nothing that it started stays."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def do(client: Connection) -> Any:
    """The job of this process; what it returns is for `sys.exit`."""
    sys.argv, environment, folder = client.recv()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    function, arguments = client.recv()  # which imports the function's module
    client.close()
    return function(*arguments)


if __name__ == "__main__":
    preload()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.exit(do(serve(socket.socket(fileno=int(sys.argv[1])))))
