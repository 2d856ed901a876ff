"""The validation set: fixed documents that training never sees, every token of which is scored once."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from data.config import DataConfig
from data.sources import Shard, Source, open_validation_source
from data.tokenizer import EOT, encode_document

IGNORED_TARGET = -1


@dataclass(frozen=True)
class ValidationSet:
    """Documents as one stream of N targets.

    Attributes:
        tokens: (N + 1,) uint16: `EOT`, then every document followed by its `EOT`. Target i is `tokens[i +
            1]`.
        document: (N,) int32: which document target i belongs to, the `EOT` that closes it included.
    """

    tokens: np.ndarray
    document: np.ndarray

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the tokens as little-endian uint16."""
        return hashlib.sha256(self.tokens.astype("<u2").tobytes()).hexdigest()

    def blocks(self, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, each (ceil(N / block_size), block_size) int64, with every target in them once.

        What the last block lacks is filled with `EOT` inputs and targets of `IGNORED_TARGET`.
        """
        count = -(-len(self.document) // block_size)
        inputs = torch.full((count * block_size,), EOT, dtype=torch.int64)
        targets = torch.full((count * block_size,), IGNORED_TARGET, dtype=torch.int64)
        inputs[: len(self.document)] = torch.from_numpy(self.tokens[:-1].astype(np.int64))
        targets[: len(self.document)] = torch.from_numpy(self.tokens[1:].astype(np.int64))
        return inputs.view(count, block_size), targets.view(count, block_size)


def split_validation(config: DataConfig, source: Source) -> tuple[ValidationSet, tuple[Shard, ...]]:
    """The validation set, and the shards of `source` that are left for training.

    The set is the beginning of `data.validation_source`, or of the sample's own validation part, or else of
    the source's last shards: as many as hold `data.validation_tokens` tokens, but at most a tenth of all and
    at least one.

    Raises:
        FileNotFoundError: `data.validation_source` does not exist.
        ValueError: there is nothing to reserve, or the held-out files are among those to train on.
    """
    if config.validation_source is None and config.source == "sample":
        config = replace(config, validation_source="sample")
    if config.validation_source is not None:
        held_out = open_validation_source(config)
        shared = sorted(held_out.file_sizes.keys() & source.file_sizes.keys())
        if shared:
            raise ValueError(
                f"data.validation_source {config.validation_source} is not held out: "
                f"data.source has {shared[0]} too."
            )
        documents = (encode_document(text) for shard in held_out.shards for text in held_out.read(shard))
        return _collect(documents, config.validation_tokens, held_out.name), source.shards
    if len(source.shards) < 2:
        raise ValueError(
            f"data.source {source.name} is a single shard, so that none can be reserved for validation: "
            "give data.validation_source."
        )
    at_most = max(1, len(source.shards) // 10)
    reserved: list[list[np.ndarray]] = []
    tokens = 0
    while tokens < config.validation_tokens and len(reserved) < at_most:
        texts = source.read(source.shards[-1 - len(reserved)])
        reserved.append([encode_document(text) for text in texts])
        tokens += sum(map(len, reserved[-1]))
    in_file_order = (document for documents in reversed(reserved) for document in documents)
    validation = _collect(in_file_order, config.validation_tokens, source.name)
    return validation, source.shards[: len(source.shards) - len(reserved)]


def _collect(documents: Iterable[np.ndarray], at_most: int, name: str) -> ValidationSet:
    """Whole documents until the next would pass `at_most` tokens, but at least one."""
    kept: list[np.ndarray] = []
    tokens = 0
    for document in documents:
        if kept and tokens + len(document) > at_most:
            break
        kept.append(document)
        tokens += len(document)
    if not kept:
        raise ValueError(f"The part of {name} that is held out for validation holds no text.")
    return ValidationSet(
        tokens=np.concatenate([np.array([EOT], dtype=np.uint16), *kept]),
        document=np.repeat(np.arange(len(kept), dtype=np.int32), [len(document) for document in kept]),
    )
