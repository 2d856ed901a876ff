"""The validation set: fixed documents that training never sees, every token of which is scored once."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from model.config import IGNORED_TARGET

from .tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ValidationSet:
    """Documents as one stream of N targets.

    Attributes:
        tokens: (N + 1,): `eot`, then every document followed by its `eot`. Target i is `tokens[i + 1]`.
        document: (N,) int32: which document target i belongs to, the `eot` that closes it included.
        bytes: (documents,) int64: the UTF-8 bytes of each document's text.
        text_fingerprint: A hash of the texts, the same for every tokenizer.
    """

    tokens: np.ndarray
    document: np.ndarray
    bytes: np.ndarray
    text_fingerprint: str

    @classmethod
    def of(cls, texts: Sequence[str], tokens: Sequence[np.ndarray], tokenizer: Tokenizer) -> "ValidationSet":
        """The set of documents that are given as texts and as tokens, each with the `eot` that closes it."""
        opening = np.array([tokenizer.eot], dtype=tokenizer.dtype)
        lengths = [len(document) for document in tokens]
        return cls(
            tokens=np.concatenate([opening, *tokens]),
            document=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            bytes=np.array([len(text.encode()) for text in texts]),
            text_fingerprint=hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
        )

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the tokens as little-endian integers (uint16, or uint32 for a large vocabulary)."""
        return hashlib.sha256(self.tokens.astype(self.tokens.dtype.newbyteorder("<")).tobytes()).hexdigest()

    def blocks(self, block_size: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """Inputs and targets, each (ceil(N / block_size), block_size) int64, with every target in them once.

        What the last block lacks is filled with `eot` inputs and targets of `IGNORED_TARGET`.
        """
        import torch  # only here: a source that is refused is refused before torch is loaded

        count = -(-len(self.document) // block_size)
        inputs = torch.full((count * block_size,), int(self.tokens[0]), dtype=torch.int64)
        targets = torch.full((count * block_size,), IGNORED_TARGET, dtype=torch.int64)
        inputs[: len(self.document)] = torch.from_numpy(self.tokens[:-1].astype(np.int64))
        targets[: len(self.document)] = torch.from_numpy(self.tokens[1:].astype(np.int64))
        return inputs.view(count, block_size), targets.view(count, block_size)
