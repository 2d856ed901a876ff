"""A sign of life in summary.json: `running` with an old one, and no process at it, means a dead run."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from filelock import Timeout

from model.files import write_json

from ..run.folder import RunFolder

EVERY_S = 10.0


@contextmanager
def heart_beating(run: RunFolder) -> Iterator[None]:
    """Have rank 0 note the time in summary.json, as `heartbeat`, every ten seconds from a thread of its own.

    It needs no step to be over, and so tells a run that hangs or compiles from one that is gone. Nothing that
    goes wrong with it reaches the run.
    """
    over = threading.Event()
    if run.rank == 0:
        run.summary["heartbeat"] = time.time()  # each update brings it up to date from here on
        threading.Thread(target=_beat, args=(run, over), name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _beat(run: RunFolder, over: threading.Event) -> None:
    """It changes what is in the file: the facts in memory are the loop's, which may be changing them."""
    file = run.path / "summary.json"
    while not over.wait(EVERY_S):
        with suppress(OSError, ValueError, Timeout), run.summary_lock.acquire(timeout=EVERY_S):
            if not over.is_set():
                write_json(file, json.loads(file.read_text()) | {"heartbeat": time.time()})
