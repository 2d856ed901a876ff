"""What all ranks do together at the end of a run, where one that fails would leave the others waiting."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

ALL_FAIL_WITHIN_S = 5.0
"""So long a rank that failed waits for the others to fail too, as they do where the GPUs' memory is short."""
LONGEST_S = 600.0
LOOK_EVERY_S = 0.2


@contextmanager
def together(leave: Callable[[str], object]) -> Iterator[Callable[[str], None]]:
    """Around collectives in which a rank may fail. All ranks call it.

    Gives what a rank that failed calls, with the reason: it returns once all have failed, so that none is in
    a collective any more. Where others are, or all are in there for too long, each rank calls `leave` with
    the reason, which has to end the process: nothing brings a rank out of a collective.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    default: Any = dist.distributed_c10d._get_default_store()
    store = dist.PrefixStore("together", default.clone())
    keys = [f"failed {other}" for other in range(world_size)]
    is_over, began = threading.Event(), time.monotonic()

    def watch() -> None:
        reason = None
        while reason is None and not is_over.wait(LOOK_EVERY_S):
            try:
                reason = store.get("reason").decode() if store.check(["reason"]) else None
            except dist.DistError:  # rank 0 is gone
                reason = "rank 0 has left"
            if time.monotonic() > began + LONGEST_S:
                reason = f"it took more than {LONGEST_S:.0f} s"
        if reason is not None and not is_over.wait(2 * ALL_FAIL_WITHIN_S):
            leave(reason)

    def fail(reason: str) -> None:
        end = time.monotonic() + ALL_FAIL_WITHIN_S
        with suppress(dist.DistError):  # rank 0 is gone
            store.compare_set("reason", "", reason)
            store.set(keys[rank], "")
            while time.monotonic() < end:
                if store.check(keys):
                    return
                time.sleep(LOOK_EVERY_S)
        thread.join()  # it leaves

    thread = threading.Thread(target=watch, name="together", daemon=True)
    thread.start()
    try:
        yield fail
    finally:
        is_over.set()
        thread.join()
