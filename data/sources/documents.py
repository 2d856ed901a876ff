"""What every source gives: documents in shards, the bad ones dealt with by one policy."""

import hashlib
import json
import os
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from model.errors import UserError

from ..config import DataConfig

ROWS_PER_SHARD = 1_000

Document = str | np.ndarray
"""A document's text, or its tokens (n + 1,) with the `eot` that closes it."""

BAD_REASONS = {
    "empty": "has no text",
    "too_long": "is longer than data.max_document_bytes",
    "not_utf8": "is not valid UTF-8",
    "not_json": "is not a JSON object with the text column",
    "unreadable": "cannot be read: its part of the file is damaged",
    "held_out": "is also in the validation set",
    "held_out_near": "is also in the validation set, but for spaces, quotes, dashes or Unicode forms",
    "not_tokenizable": "makes the tokenizer fail",
}
"""Why a document is left out of training, as metrics.jsonl counts it, and in words."""


class BadRow(NamedTuple):
    """A row that holds no usable text, and which of `BAD_REASONS` it is."""

    reason: str


class Documents(NamedTuple):
    """What a shard holds: the documents in file order, and how many were left out by reason."""

    kept: list[Document]
    bad: Counter[str]


class DamagedShard(Exception):
    """The bytes of a shard cannot be decoded, however often they are read."""


@dataclass(frozen=True)
class Shard:
    """Up to `ROWS_PER_SHARD` consecutive rows of one file, number `index` of all.

    Shards of the same `path` and `group` (a parquet row group) are cheapest read one after the other.
    `rows` is 0 where it is not known before the shard is read.
    """

    index: int
    path: str
    group: int
    first_row: int
    rows: int


def shard_runs(shards: Sequence[Shard], longest: int = sys.maxsize) -> list[list[Shard]]:
    """Runs of consecutive shards: those of a row group, or parts of it where it has more than `longest`."""
    groups = [list(group) for _, group in groupby(shards, key=lambda shard: (shard.path, shard.group))]
    return [group[at : at + longest] for group in groups for at in range(0, len(group), longest)]


class Source(ABC):
    """Documents in shards.

    Attributes:
        name: What `data.source` said.
        file_sizes: Bytes by path.
        shards: All shards in file order.
        config: Which text column, and what is done with bad documents.
        notes: What a user should know of the source, a sentence each.
        decodes_from_group_start: Whether a shard inside a large row group costs decoding what stands
            before it in the row group.
        fingerprint: A hash of the files' names and sizes, their shards, the revision and the text column. It
            stays the same when the files move to another folder.
    """

    decodes_from_group_start = False

    def __init__(
        self,
        config: DataConfig,
        file_sizes: dict[str, int],
        shards: Sequence[Shard],
        revision: str | None = None,
    ) -> None:
        self.name = config.source
        self.notes: list[str] = []
        self.file_sizes = file_sizes
        self.shards = tuple(shards)
        self.config = config
        content = [config.text_column, [[os.path.basename(path), size] for path, size in file_sizes.items()]]
        content.append([[os.path.basename(s.path), s.group, s.first_row, s.rows] for s in self.shards])
        content.append([revision] if revision else [])
        self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        if not self.shards:
            raise UserError(f"data.source: {self.name} holds no documents")

    def read(self, shard: Shard) -> Documents:
        """The documents of a shard.

        Raises:
            UserError: one is bad and `data.on_bad_document` is `stop`.
            ConnectionError: the shard cannot be fetched, after several tries.
        """
        try:
            rows = self._rows(shard)
        except DamagedShard as error:
            if self.config.on_bad_document == "stop":
                raise UserError(
                    f"data.source: {shard.path} is damaged in part {shard.group}, from row {shard.first_row} "
                    f"on ({error}): mend the file, or set data.on_bad_document to skip"
                ) from error
            return Documents([], Counter(unreadable=shard.rows or 1))
        kept: list[Document] = []
        bad: Counter[str] = Counter()
        for number, row in enumerate(rows, start=shard.first_row):
            # tokens are common here, and the check of each is most of what reading them costs
            reason = None if isinstance(row, np.ndarray) and len(row) else self._problem(row)
            if reason is None:
                kept.append(row)  # type: ignore[arg-type]
            elif self.config.on_bad_document == "stop":
                raise self._refusal(shard, number, reason)
            else:
                bad[reason] += 1
        return Documents(kept, bad)

    def leave_out(self, document: str, shards: Sequence[Shard], reason: str) -> None:
        """Raises UserError with the place of a bad document, which is in one of these shards, where
        `data.on_bad_document` is `stop`."""
        if self.config.on_bad_document == "stop":
            rows = ((shard, row) for shard in shards for row in enumerate(self._rows(shard), shard.first_row))
            raise next(
                self._refusal(shard, number, reason) for shard, (number, row) in rows if row == document
            )

    def _refusal(self, shard: Shard, number: int, reason: str) -> UserError:
        return UserError(
            f"data.source: document {number} of part {shard.group} of {shard.path} {BAD_REASONS[reason]}: "
            "mend it, or set data.on_bad_document to skip"
        )

    def ids(self, shard: Shard) -> list[str] | None:
        """The `id` column of a shard's rows; None where there is none."""
        return None

    @abstractmethod
    def _rows(self, shard: Shard) -> Sequence[Document | BadRow | None]:
        """The shard's rows in file order, null ones as None. Raises DamagedShard."""

    def _problem(self, row: Document | BadRow | None) -> str | None:
        if isinstance(row, BadRow):
            return row.reason
        if row is None or len(row) == 0:
            return "empty"
        if isinstance(row, str):
            try:
                size = len(row) if row.isascii() else len(row.encode())
            except UnicodeEncodeError:  # half a surrogate pair, as JSON can hold
                return "not_utf8"
            if size > self.config.max_document_bytes:
                return "too_long"
        return None
