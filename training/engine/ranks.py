"""DeepSpeed imported, the ranks joined, and the device chosen by what the hardware has."""

import ctypes
import os
import socket

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
    "Launcher",
    "deepspeed",
    "from_rank_0",
    "join_ranks",
    "rank_from_environment",
    "world_size_from_environment",
]


def world_size_from_environment() -> int:
    """How many ranks the launcher started; 1 under plain `python`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_from_environment() -> int:
    """This process's number among the ranks; 0 under plain `python`."""
    return int(os.environ.get("RANK", "0"))


def join_ranks() -> torch.device:
    """Join the process group (NCCL on GPUs, gloo on CPUs) and return this rank's device.

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
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return device


def from_rank_0(sentence: str | None) -> str | None:
    """What rank 0 says, on all ranks: a launcher ends the ranks of its own host only."""
    said = [sentence]
    dist.broadcast_object_list(said)
    dist.barrier()  # rank 0 serves the others until they know
    return said[0]


class Launcher:
    """Whoever started this rank: if DeepSpeed's launcher is killed, its workers would go on by themselves."""

    def __init__(self) -> None:
        parent = psutil.Process(os.getppid())
        self._ancestors = None
        # The `deepspeed` command starts this module on each node, and it starts the ranks.
        if "deepspeed.launcher.launch" in parent.cmdline():
            self._ancestors = (parent.pid, parent.ppid())

    def is_gone(self) -> bool:
        """Whether the `deepspeed` command that this rank belongs to has ended."""
        if self._ancestors is None:
            return False
        try:
            parent = psutil.Process(os.getppid())
            return (parent.pid, parent.ppid()) != self._ancestors
        except psutil.NoSuchProcess:  # it ended between the two looks
            return True


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
