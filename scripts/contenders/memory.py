"""What a contender holds at most: the allocator's bytes on a GPU, the resident set's on a CPU."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, int]]:
    """Bytes at most inside, over what was there before, once the block has ended without an error."""
    over: dict[str, int] = {}
    release(device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield over
        over["over"] = torch.cuda.max_memory_allocated() - before
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        yield over
        over["over"] = _status("VmHWM") - before


def release(device: torch.device) -> None:
    """Give freed memory back, and compiled code: the next contender's sizes are the first that it sees."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        ctypes.CDLL(None).malloc_trim(0)


def load_libraries() -> None:
    """What the first compilation and the first Trainer of a process load stays, and should count for none."""
    from transformers import GPT2LMHeadModel, Trainer  # noqa: F401

    x = torch.ones(8, requires_grad=True)
    torch.compile(torch.sin)(x).sum().backward()


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
