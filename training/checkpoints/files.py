"""Files that are hashed while they are written, and are on the disk when they are said to be."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors.torch import load_file

Weights = Mapping[str, torch.Tensor]
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""As safetensors names them."""


class Written(TypedDict):
    """What a manifest says of a file: bytes, and its sha256 in hex."""

    size: int
    sha256: str


class HashedFile:
    """A new file that knows what was written to it, whatever becomes of it on the disk.

    Used as a context; at its end the file is on the disk. Raises OSError as files do.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest, self._size = hashlib.sha256(), 0

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def write(self, content: Any) -> int:
        """Append bytes, or what can be read as such."""
        self._digest.update(content)
        self._size += memoryview(content).nbytes
        return self._file.write(content)

    def flush(self) -> None:
        """As a file's; `torch.save` calls it."""
        self._file.flush()

    def written(self) -> Written:
        """What was written so far."""
        return {"size": self._size, "sha256": self._digest.hexdigest()}


def write_hashed(path: Path, write: Callable[[HashedFile], object]) -> Written:
    """Let `write` fill a new file, put it on the disk and say what is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with HashedFile(path) as file:
        write(file)
    return file.written()


def write_safetensors(path: Path, weights: Weights) -> Written:
    """Weights as a safetensors file, in fp32 where they were fp16 or bf16.

    A tensor that has two names is there once; the file's metadata name the other one, as Hugging Face does.
    """
    first: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {"format": "pt"}
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in sorted(weights.items(), reverse=True):  # transformer.wte before its tied lm_head
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and (same := first.setdefault(place, name)) != name:
            tied[name] = same
        else:
            kept[name] = tensor
    header: dict[str, Any] = {"__metadata__": tied}
    end = 0
    for name, tensor in kept.items():
        dtype = _stored_dtype(tensor)
        begin, end = end, end + tensor.numel() * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # the data begin at a multiple of 8 bytes

    def write(file: HashedFile) -> None:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in kept.values():
            content = tensor.detach().to(_stored_dtype(tensor)).contiguous().reshape(-1)
            file.write(content.view(torch.uint8).numpy().data)

    return write_hashed(path, write)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All weights of a file of `write_safetensors`, by all of their names. It executes no code."""
    from safetensors import safe_open

    weights = load_file(path)
    with safe_open(path, framework="pt") as file:
        tied = file.metadata() or {}
    return weights | {name: weights[same] for name, same in tied.items() if same in weights}


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, which those of new files are not when the files are."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stored_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
