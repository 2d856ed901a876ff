"""A clock that a test turns."""


class Clock:
    """Stands in for `time.perf_counter` or `time.time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
