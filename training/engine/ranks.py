"""DeepSpeed imported, the ranks joined, and the device chosen by what the hardware has."""

import ctypes
import os
import socket
import time
from dataclasses import dataclass
from typing import TypeVar

import psutil
import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    # DeepSpeed finds this out by itself, but with a warning on every rank.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed
import deepspeed.comm.config
import deepspeed.runtime.precision_config
import deepspeed.runtime.zero.config

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

    def any(self, flag: bool) -> bool:
        """Whether one rank or more says true. All ranks call it."""
        flags = torch.tensor([flag], dtype=torch.int32, device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def broadcast(self, said_here: Said) -> Said:
        """What rank 0 says, a sentence or other small data, on all ranks, which all call it.

        Where rank 0 refuses, every rank has to: a launcher ends the ranks of its own host only.
        """
        said = [said_here]
        dist.broadcast_object_list(said)
        dist.barrier()  # rank 0 serves the others until they know
        return said[0]


def join_ranks() -> Ranks:
    """Join the process group (NCCL on GPUs, gloo on CPUs), and choose this rank's device.

    Plain `python` gets a group of one. On CPUs the ranks of a machine share its cores evenly, unless
    OMP_NUM_THREADS says otherwise.
    """
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        if not _number_of_threads_was_chosen():
            of_deepspeed, of_torchrun = os.environ.get("LOCAL_SIZE"), os.environ.get("LOCAL_WORLD_SIZE")
            ranks_here = int(of_deepspeed or of_torchrun or os.environ["WORLD_SIZE"])
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
        _keep_freed_memory()
        device = torch.device("cpu")
    if os.environ["RANK"] != "0":
        _wait_for_rank_0()
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def _wait_for_rank_0() -> None:
    """Return once rank 0 listens, which the pre-flight check delays, or cannot be reached at all.

    torch itself tries once per second, so that half a second of every start would be spent waiting.
    """
    place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    wait = 0.01
    while True:
        try:
            socket.create_connection(place, timeout=1).close()
            return
        except ConnectionRefusedError:
            time.sleep(wait)
            wait = min(1.2 * wait, 0.1)
        except OSError:  # torch tries for minutes, and says what is wrong
            return


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
