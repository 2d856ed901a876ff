"""DeepSpeed imported, the ranks joined, and the device chosen by what the hardware has."""

import ctypes
import os
import socket
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

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
    "bf16_arithmetic",
    "deepspeed",
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


def bf16_arithmetic() -> AbstractContextManager:
    """What bf16 steps run under on this hardware: nothing special, but on CPUs without bf16 instructions."""
    if torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return nullcontext()
    return MultiplyBF16InFP32()


class MultiplyBF16InFP32(TorchDispatchMode):
    """Matrix products and attention on bf16 tensors, computed in fp32 and rounded to bf16.

    That is what bf16 hardware does too: exact products, sums in fp32, one rounding. On a CPU without bf16
    instructions torch's own bf16 kernels are 3 to 60 times slower than this.
    """

    _PRODUCTS = frozenset(
        {
            torch.ops.aten.mm.default,
            torch.ops.aten.addmm.default,
            torch.ops.aten.bmm.default,
            torch.ops.aten.baddbmm.default,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
        }
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self._PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return result.bfloat16()
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            output, log_sum_exp = result
            return output.bfloat16(), log_sum_exp  # bf16 attention keeps its log-sum-exp in fp32
        return tuple(gradient.bfloat16() for gradient in result)
