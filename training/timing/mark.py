"""A point in what a device computes, and the way to it without waiting."""

import time

import torch


class Mark:
    """Where a device is once it has computed all that it was given so far; on a CPU that is now.

    On a GPU it is an event in the stream: to set one waits for nothing.

    Args:
        device: this rank's.
    """

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event:
            self._event.record()
        self._time = time.perf_counter()

    def is_reached(self) -> bool:
        """Whether the device is there."""
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Wait until it is there, but not for what it was given since."""
        if self._event:
            self._event.synchronize()

    def seconds_until(self, later: "Mark") -> float:
        """What the device took from here to `later`; both must be reached."""
        if self._event and later._event:
            return self._event.elapsed_time(later._event) / 1000
        return later._time - self._time


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host's tensor on `device`. A GPU copies it from pinned memory, for which nobody waits."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
