"""Steps of a recipe's model at one micro-batch, in a process of their own: how fast, and how much memory."""

import contextlib
import gc
import os
import resource
import statistics
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from model.errors import UserError

if TYPE_CHECKING:
    import torch

    from model import GPTConfig

    from ..config import DeepSpeedConfig, Recipe

RESERVE = 0.1
"""Of a device's memory: the CUDA context, NCCL's buffers, fragmentation; on a CPU what else runs there."""
STEPS = 2
"""Steps that are timed, after one that compiles."""


@dataclass(frozen=True)
class Started:
    """What is said before the model is built.

    Attributes:
        available: bytes that the model and its step may take
    """

    available: int


@dataclass(frozen=True)
class Measured:
    """What the steps took.

    Attributes:
        peak: bytes at most over what there was before the model: of tensors on a GPU, resident on a CPU
        reserved: bytes at most that the process took from the GPU; on a CPU `peak` again
        micro_batch_s: seconds of a forward and backward
        optimizer_s: seconds of what follows the last one of a step
    """

    peak: int
    reserved: int
    micro_batch_s: float
    optimizer_s: float


@dataclass(frozen=True)
class Failed:
    """Why there are no figures: `refused` is a sentence for the user, else it is a stack trace."""

    text: str
    refused: bool


def free_memory() -> int:
    """Bytes of RAM that this machine, or the container around this process, could still give."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free


def attempt(pipe: Connection, recipe: "Recipe", deepspeed: "DeepSpeedConfig", limit: int | None) -> None:
    """Make steps of random tokens and send `Started`, then `Measured`; nothing where memory did not suffice.

    Args:
        pipe: where it is sent.
        recipe: the model, and whether it is compiled.
        deepspeed: the engine of one rank, sized.
        limit: bytes that the process may have; None for a GPU's less a reserve.
    """
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what DeepSpeed and compilers say
        os.dup2(silence, stream)
    with contextlib.suppress(OSError):  # before anything else on the machine
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        import torch

        try:
            pipe.send(_measured(pipe, recipe, deepspeed, limit))
        except (torch.OutOfMemoryError, MemoryError):
            return
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
    except UserError as error:
        pipe.send(Failed(str(error), refused=True))
    except Exception:
        pipe.send(Failed(traceback.format_exc(), refused=False))


def _measured(
    pipe: Connection, recipe: "Recipe", deepspeed: "DeepSpeedConfig", limit: int | None
) -> Measured:
    import torch

    from ..engine.cpu_bf16 import bf16_arithmetic
    from ..engine.libraries import load_libraries
    from ..engine.ranks import join_ranks

    load_libraries(recipe.train.compile)
    device = join_ranks().device
    with bf16_arithmetic():
        if device.type == "cuda":
            free, whole = torch.cuda.mem_get_info()
            available = min(free, limit or int((1 - RESERVE) * whole))
            torch.cuda.set_per_process_memory_fraction(min(1.0, available / whole))
            pipe.send(Started(available))
            seconds = _steps(recipe.model, recipe, deepspeed, device, STEPS)
            return Measured(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), *seconds)
        # What is imported and allocated once is no part of the model.
        small = replace(recipe.model, n_embd=8 * recipe.model.n_head, block_size=8, vocab_size=64)
        _steps(small, recipe, _one_sequence(deepspeed), device, 0)
        gc.collect()
        before = psutil.Process().memory_info().rss
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        pipe.send(Started((limit or free_memory()) - before))
        seconds = _steps(recipe.model, recipe, deepspeed, device, STEPS)
        peak = _peak_resident() - before
        return Measured(peak, peak, *seconds)


def _one_sequence(deepspeed: "DeepSpeedConfig") -> "DeepSpeedConfig":
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return replace(deepspeed, raw={**deepspeed.raw, **dict.fromkeys(sizes, 1)})


def _peak_resident() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _steps(
    config: "GPTConfig", recipe: "Recipe", deepspeed: "DeepSpeedConfig", device: "torch.device", count: int
) -> tuple[float, float]:
    """A step that is not timed, then `count` of them; the medians of seconds, as `Measured` has them."""
    import torch

    from model import GPT
    from model.probe import probe_unless_ours

    from ..engine.build import build_engine
    from ..engine.compilation import wrap_blocks

    gpt = GPT(config).to(device)
    gpt.treat(probe_unless_ours(config))
    train = recipe.train
    wrap_blocks(gpt, train.compile, deepspeed, lambda sentence: None, train.activation_memory_budget)
    engine: Any = build_engine(gpt, deepspeed)
    size = (deepspeed.micro_batch, config.block_size)
    micro_batches, optimizers = [0.0], [0.0]
    for number in range(count + 1):
        of_step = []
        for _ in range(deepspeed.accumulation):
            began = time.perf_counter()
            idx = torch.randint(config.vocab_size, size, device=device)
            documents = (idx == 0).cumsum(1) if recipe.data.document_mask else None
            _, loss = engine(idx, idx, documents=documents)
            engine.backward(loss)
            _wait_for(device)
            of_step.append(time.perf_counter() - began)
            began = time.perf_counter()
            engine.step()
            _wait_for(device)
        if number:
            micro_batches += of_step
            optimizers.append(time.perf_counter() - began)
    engine.destroy()
    timed = slice(1 if count else 0, None)
    return statistics.median(micro_batches[timed]), statistics.median(optimizers[timed])


def _wait_for(device: "torch.device") -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
