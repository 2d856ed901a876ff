"""DeepSpeed imported, the ranks joined, and the device chosen by what the hardware has."""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    # DeepSpeed finds this out by itself, but with a warning on every rank.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed
import deepspeed.accelerator
import deepspeed.comm.config
import deepspeed.constants
import deepspeed.runtime.precision_config
import deepspeed.runtime.zero.config

from model.errors import LauncherError

from .environment import Launch, launch_from_environment
from .meeting import meet

# DeepSpeed looks only for its shared-memory op here, which only serves inference. Building it takes a minute,
# and a build that is killed leaves a lock behind on which every later start waits for ever. Set and not
# changed: to read it is to probe every op of DeepSpeed's for a compiler first.
vars(deepspeed.ops)["__compatible_ops__"] = {}

__all__ = [
    "Ranks",
    "deepspeed",
    "join_ranks",
]


Said = TypeVar("Said")


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, as one of them sees it.

    Attributes:
        rank: this one's number, from 0.
        world_size: how many there are.
        device: this one's.
    """

    rank: int
    world_size: int
    device: torch.device
    _under_way: list[tuple[torch.Tensor, Any]] = field(default_factory=list, repr=False)

    @property
    def limit_s(self) -> float:
        """How long a collective may take, in seconds: DEEPSPEED_TIMEOUT."""
        return deepspeed.constants.default_pg_timeout.total_seconds()

    def any(self, flag: bool) -> bool:
        """Whether one rank or more says true. All ranks call it."""
        flags = torch.tensor([flag], dtype=torch.int32, device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def any_soon(self, flag: bool) -> bool:
        """`any` without waiting for a GPU: what it gives there is the answer to the call before this one.

        All ranks call it. So the GPU always has work of one micro-batch, whose flag is read when it is over.
        """
        if self.device.type != "cuda":
            return self.any(flag)
        flags = torch.tensor([flag], dtype=torch.int32).pin_memory().to(self.device, non_blocking=True)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        answer, arrived = torch.empty(1, dtype=torch.int32, pin_memory=True), torch.cuda.Event()
        answer.copy_(flags, non_blocking=True)
        arrived.record()
        self._under_way.append((answer, arrived))
        if len(self._under_way) == 1:
            return False
        answer, arrived = self._under_way.pop(0)
        arrived.synchronize()
        return bool(answer.item())

    def gather(self, said_here: Said) -> list[Said]:
        """What each rank says, small data, in the ranks' order. All ranks call it."""
        said: list[Any] = [None] * self.world_size
        dist.all_gather_object(said, said_here)
        return said

    def broadcast(self, said_here: Said) -> Said:
        """What rank 0 says, a sentence or other small data, on all ranks, which all call it.

        Where rank 0 refuses, every rank has to: a launcher ends the ranks of its own host only.
        """
        said = [said_here]
        dist.broadcast_object_list(said)
        dist.barrier()  # rank 0 serves the others until they know
        return said[0]


def join_ranks(run: str = "", say: Callable[[str], None] = print) -> Ranks:
    """Join the process group (NCCL on GPUs, gloo on CPUs), and choose this rank's device.

    Plain `python` gets a group of one. On CPUs the ranks of a machine share its cores evenly, unless
    OMP_NUM_THREADS says otherwise.

    Args:
        run: its name, the same on all ranks.
        say: is told for whom this rank waits, if it waits for long.

    Raises LauncherError, UserError or OSError where the ranks do not find each other, as `meet` does.
    """
    launch = launch_from_environment()
    local_rank, ranks_here = (launch.local_rank, launch.ranks_here) if launch else (0, 1)
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise LauncherError(
                f"LOCAL_RANK is {local_rank}, but this process sees {torch.cuda.device_count()} GPU(s), "
                "counted from 0: start so many ranks here"
            )
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
        # What is said to be in fp32 is not in TF32, of 10 bits, as convolutions would be.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    else:
        if not _number_of_threads_was_chosen():
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
        _keep_freed_memory()
        device = torch.device("cpu")
    if not dist.is_initialized():
        _join(launch, device, run, say)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def _join(launch: Launch | None, device: torch.device, run: str, say: Callable[[str], None]) -> None:
    """Make the process group as DeepSpeed would, which takes the one that is there."""
    limit = deepspeed.constants.default_pg_timeout
    store: dist.Store
    if launch is None:
        store = alone = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        launch = Launch(0, 0, 1, "127.0.0.1", alone.port, 1)
        os.environ |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": launch.host,
            "MASTER_PORT": str(launch.port),
        }
    else:
        store = meet(launch, run, limit, say)
    dist.init_process_group(
        deepspeed.accelerator.get_accelerator().communication_backend_name(),
        store=store,
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=limit,
        device_id=device if device.type == "cuda" and launch.world_size > 1 else None,
    )


def _number_of_threads_was_chosen() -> bool:
    """Whether OMP_NUM_THREADS is the user's, or DeepSpeed's for --bind_cores_to_rank.

    torchrun gives its ranks a 1 where the user has set nothing; what it was started with itself tells.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        return False
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    return "OMP_NUM_THREADS" in psutil.Process(os.getppid()).environ()


def _keep_freed_memory() -> None:
    """Have glibc reuse large tensors' memory; else the kernel maps and zeroes the logits every step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, mmap_max = -1, -4  # malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
