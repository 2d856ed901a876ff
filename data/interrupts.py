"""Waits that end early once their result is not wanted any more."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

LOOK_SECONDS = 0.1
"""So often whoever waits asks whether it still should."""


class Interrupted(Exception):
    """What was waited for is not wanted any more. The data has no fault and has not ended."""


def never() -> bool:
    """What is asked where nobody interrupts."""
    return False


_interrupted: Callable[[], bool] = never


@contextmanager
def interruptible(interrupted: Callable[[], bool]) -> Iterator[None]:
    """Within the block all threads of this process that wait for data ask `interrupted` several times per
    second, and raise `Interrupted` once it is true."""
    global _interrupted
    before, _interrupted = _interrupted, interrupted
    try:
        yield
    finally:
        _interrupted = before


def is_interrupted() -> bool:
    """Whether waits of this process should end."""
    return _interrupted()


def check_interrupted() -> None:
    """Raise Interrupted where waits of this process should end."""
    if _interrupted():
        raise Interrupted("waiting for data was interrupted")


def pause(seconds: float) -> None:
    """Sleep. Raises Interrupted."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check_interrupted()
        time.sleep(min(left, LOOK_SECONDS))


def is_done(future: "Future[Any]", seconds: float) -> bool:
    """Whether a result comes within `seconds`. Raises Interrupted."""
    end = time.monotonic() + seconds
    while not future.done():
        left = end - time.monotonic()
        if left <= 0:
            return False
        check_interrupted()
        wait([future], timeout=min(left, LOOK_SECONDS))
    return True
