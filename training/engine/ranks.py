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

# This op only serves inference. Building it takes a minute, and a build that is killed leaves a lock
# behind on which every later start waits for ever.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

__all__ = [
    "Launcher",
    "deepspeed",
    "from_rank_0",
    "join_ranks",
]


def join_ranks() -> torch.device:
    """Join the process group (NCCL on GPUs, gloo on CPUs) and return this rank's device.

    Plain `python` gets a group of one. On CPUs the ranks of a machine share its cores evenly.
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
        here = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE")  # DeepSpeed's, torchrun's
        ranks_here = int(here or os.environ["WORLD_SIZE"])
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


def _keep_freed_memory() -> None:
    """Have glibc reuse large tensors' memory; else the kernel maps and zeroes the logits every step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, mmap_max = -1, -4  # malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
