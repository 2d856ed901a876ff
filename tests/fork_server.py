"""A process with torch and DeepSpeed imported, from which tests fork others instead of starting interpreters.

An import of both takes four CPU seconds, a fork some milliseconds. What is forked behaves as a fresh process
that was started with the server's environment: it has its own session, arguments, folder, stdout and stderr,
an uncaught exception goes to `sys.excepthook`, and at its end the interpreter shuts down as it always does.
What it shares with its siblings, unlike fresh processes, is the seed of Python's string hashes.

This is the server, `python -m tests.fork_server DESCRIPTOR`; tests call `tests.processes.fork`.
"""

import ctypes
import gc
import importlib
import os
import pkgutil
import signal
import socket
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch._dynamo", "torch._inductor.compile_fx", "deepspeed.module_inject.auto_ep_config",
    "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.runtime.zero.stage3", "attrs", "datasets",
    "docstring_parser", "pyarrow.parquet", "pytest", "requests", "scipy.io", "scipy.sparse",
    "tiktoken_ext.openai_public", "tokenizers", "wandb",
)  # fmt: skip
"""What a run imports on its way."""
PR_SET_PDEATHSIG = 1  # prctl.h


def preload() -> None:
    """Import what nearly every job imports."""
    ours = [
        found.name
        for package in ("model", "data", "training")
        for found in pkgutil.walk_packages([package], f"{package}.")
        if not found.name.endswith(("__main__", "modeling_normlab"))
    ]
    for module in (*ours, "train", *LIBRARIES):
        importlib.import_module(module)
    # A compiler's threads stay, and so the first to need one is a fork: here the loss comes from the cache.
    if (pid := os.fork()) == 0:
        compile_the_loss()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    compile_the_loss()
    # A fork has one thread, which may wait for ever for what another held. Arrow's jemalloc sees to its own.
    threads = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
    assert len([name for name in threads if name != "jemalloc_bg_thd\n"]) == 1, threads
    gc.collect()
    gc.freeze()  # a collection in a fork would write to every page, and so copy it


def compile_the_loss() -> None:
    """Once, and not in every process: bf16 losses are compiled where bf16 products are fast."""
    import torch

    from model.loss import linear_cross_entropy
    from training.engine.cpu_bf16 import bf16_arithmetic

    hidden, rows = (torch.randn(n, 32, dtype=torch.bfloat16, requires_grad=True) for n in (24, 128))
    with bf16_arithmetic():
        linear_cross_entropy(hidden, rows, torch.arange(24), "mean")


def serve(requests: socket.socket) -> Connection:
    """Fork for each request until the tests' process is gone; returns in the forked processes alone."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1, 3)
        with suppress(ChildProcessError):
            # Also for the sake of `time`: the CPU seconds of what was waited for add up to the suite's.
            while os.waitpid(-1, os.WNOHANG if message else 0)[0]:
                pass
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            return supervise(Connection(descriptors[0]), descriptors[1:])
        for descriptor in descriptors:
            os.close(descriptor)


def supervise(client: Connection, outputs: list[int]) -> Connection:
    """Fork the process that does the job, where this returns; tell the client how it ends."""
    die_with_the_parent()
    pid = os.fork()
    if pid == 0:
        die_with_the_parent()
        os.setsid()
        for number, descriptor in enumerate(outputs, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        client.send(os.getpid())  # not before it has a group of its own, which may be killed at once
        return client
    for descriptor in outputs:
        os.close(descriptor)
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
    sys.exit(do(serve(socket.socket(fileno=int(sys.argv[1])))))
