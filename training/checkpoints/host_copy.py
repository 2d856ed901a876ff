"""A copy of a rank's state in host memory, which the next step cannot change any more."""

import copy
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from .safe_loading import load_safely


class HostCopies:
    """Copies nested state with its tensors to the host, into memory that is used again for later copies.

    Tensors that share memory share it in the copy: a tied weight is there once. On a GPU the memory is
    pinned, so that the copy runs at the speed of the bus.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[torch.Tensor]] = defaultdict(list)
        self._in_use: list[torch.Tensor] = []
        self._copied: dict[int, tuple[torch.UntypedStorage, torch.Tensor]] = {}

    @property
    def bytes(self) -> int:
        """Of the tensors that are copied and not given back."""
        return sum(len(buffer) for buffer in self._in_use)

    def copy(self, state: Any) -> Any:
        """`state` with all that can change in it copied; complete only after `finish`."""
        if isinstance(state, torch.Tensor):
            return self._copy_tensor(state)
        if isinstance(state, dict):
            copied = copy.copy(state)  # with its class and attributes
            for key, value in state.items():
                copied[key] = self.copy(value)
            return copied
        if isinstance(state, (list, tuple)) and not isinstance(state, torch.Size):
            values = [self.copy(value) for value in state]
            if type(state) in (list, tuple):
                return type(state)(values)
            return type(state)(*values) if hasattr(state, "_fields") else copy.deepcopy(state)
        return copy.deepcopy(state)

    def finish(self) -> None:
        """Wait for copies under way. Later copies share no memory with those so far."""
        self._copied.clear()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def give_back(self) -> None:
        """The copies so far are not needed any more: later ones take their memory."""
        self._copied.clear()
        for buffer in self._in_use:
            self._free[len(buffer)].append(buffer)
        self._in_use.clear()

    def _copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._copied:
            size = storage.nbytes()
            source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            free = self._free[size]
            buffer = free.pop() if free else torch.empty(size, dtype=torch.uint8, pin_memory=tensor.is_cuda)
            buffer.copy_(source, non_blocking=True)
            self._in_use.append(buffer)
            self._copied[storage.data_ptr()] = storage, buffer  # held, so that no other takes its address
        buffer = self._copied[storage.data_ptr()][1]
        copied = torch.empty(0, dtype=tensor.dtype).set_(
            buffer.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
        )
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(copied, tensor.requires_grad)
        return copied


class CopyingEngine(CheckpointEngine):
    """What DeepSpeed writes a checkpoint through: it copies, and leaves the writing to a flight.

    Attributes:
        files: what DeepSpeed has saved, by path.
        seconds: what the copies took.
    """

    def __init__(self, copies: HostCopies) -> None:
        super().__init__()
        self._copies = copies
        self.files: dict[Path, Any] = {}
        self.seconds = 0.0

    def create(self, info: Any) -> None:
        """A checkpoint begins."""
        self.files, self.seconds = {}, 0.0

    def save(self, state_dict: Any, path: str) -> None:
        """Copy the state of a file."""
        began = time.perf_counter()
        self.files[Path(path)] = self._copies.copy(state_dict)
        self._copies.finish()
        self.seconds += time.perf_counter() - began

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read a file without executing code."""
        return load_safely(path)

    def commit(self, info: Any) -> bool:
        """A checkpoint is copied."""
        return True
