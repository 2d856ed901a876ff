"""What every source gives: documents in shards, the bad ones dealt with by one policy."""

import hashlib
import json
import os
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np

from model.errors import UserError

from ..config import DataConfig
from ..files.hashes import content_hashes
from ..files.versions import WITHOUT_CHECKSUM
from .places import is_remote, local_path

ROWS_PER_SHARD = 1_000
"""No shard has more rows."""
SHARD_TEXT_BYTES = 2**23
"""About so much text a shard holds at most."""
SHARDS = 128
"""A source that has fewer shards of `ROWS_PER_SHARD` is cut into about so many smaller ones."""

Document = str | np.ndarray
"""A document's text, or its tokens (n + 1,) with the `eot` that closes it."""

FORM = "content:"
"""How a fingerprint begins; those of older NormLabs, which do not know a file's content, begin otherwise."""

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


@dataclass(frozen=True, slots=True)  # of a large source there are hundreds of thousands
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


class RowGroup(NamedTuple):
    """Consecutive rows of a file, number `group` of its groups, and the bytes of their text."""

    path: str
    group: int
    rows: int
    text_bytes: int


def cut_into_shards(groups: Iterable[RowGroup], rows_of_source: int) -> tuple[list[Shard], int]:
    """The shards of all groups, in order, and how many of them a lane shuffles together.

    It follows from the rows and bytes alone. A shard has `ROWS_PER_SHARD` rows, or less where they would hold
    more than `SHARD_TEXT_BYTES` or the source fewer than `SHARDS` shards; what a group has to be cut into is
    cut evenly. Small shards are shuffled with as many others as make up a group or a large shard.
    """
    of_source = -(-rows_of_source // SHARDS)
    shards: list[Shard] = []
    largest_group, per_large_shard = 1, ROWS_PER_SHARD
    for path, group, rows, size in groups:  # once, as a large source has hundreds of thousands
        if rows == 0:
            continue
        together = min(ROWS_PER_SHARD, max(1, SHARD_TEXT_BYTES * rows // max(1, size)))
        wanted = min(together, of_source)
        parts = max(round(rows / wanted), -(-rows // ROWS_PER_SHARD))
        # where nothing asks for less, the last shard of a group is what remains
        per_shard = -(-rows // parts) if wanted < ROWS_PER_SHARD else ROWS_PER_SHARD
        in_group = range(0, rows, per_shard)
        shards += [
            Shard(number, path, group, first, min(per_shard, rows - first))
            for number, first in enumerate(in_group, start=len(shards))
        ]
        largest_group = max(largest_group, len(in_group))
        per_large_shard = min(per_large_shard, max(1, together // per_shard))
    return shards, min(largest_group, per_large_shard)


class Source(ABC):
    """Documents in shards.

    Attributes:
        name: What `data.source` said.
        file_sizes: Bytes by path.
        shards: All shards in file order.
        shards_per_window: So many shards a lane shuffles together for each of `data.shuffle_window`.
        config: Which text column, and what is done with bad documents.
        notes: What a user should know of the source, a sentence each.
        decodes_from_group_start: Whether a shard inside a large row group costs decoding what stands
            before it in the row group.
        holds_tokens: Whether its documents are tokens already.
        validation_split: Another split of the same source, whose documents are held out.
        revision: The commit that the hub's files are of.
        versions: Of each remote file what the storage tells its content by.
    """

    decodes_from_group_start = False
    holds_tokens = False
    shards_per_window = 1
    validation_split: str | None = None

    def __init__(
        self,
        config: DataConfig,
        file_sizes: dict[str, int],
        shards: Sequence[Shard],
        revision: str | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self.name = config.source
        self.notes: list[str] = []
        self.file_sizes = file_sizes
        self.shards = tuple(shards)
        self.config = config
        self.revision = revision
        self.versions = versions or {}
        if not self.shards:
            raise UserError(f"data.source: {self.name} holds no documents")
        if any(version.startswith(WITHOUT_CHECKSUM) for version in self.versions.values()):
            self.notes.append(
                f"data.source: the storage of {self.name} gives no checksums, so an edit that keeps a file's "
                "size and date would not be seen."
            )

    @property
    def is_remote(self) -> bool:
        """Whether any of its files comes over a network."""
        return any(map(is_remote, self.file_sizes))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the files' names and content, their shards and the text column.

        It stays the same when the files move to another folder, when a URL is signed anew, and when the hub's
        commit changes none of them. Files here are read when it is first asked for. Raises UserError where
        one cannot be.
        """
        here = [path for path in self.file_sizes if path not in self.versions]
        versions = {**self.versions, **content_hashes(here)}
        files = [[_name(path), versions[path]] for path in self.file_sizes]
        cut = [[_name(s.path), s.group, s.first_row, s.rows] for s in self.shards]
        content = [self.config.text_column, files, cut, self.shards_per_window]
        return FORM + hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def older_fingerprint(self) -> str:
        """What the fingerprint was until NormLab hashed content: of names, sizes and the hub's commit."""
        files = [[os.path.basename(path), size] for path, size in self.file_sizes.items()]
        cut = [[os.path.basename(s.path), s.group, s.first_row, s.rows] for s in self.shards]
        content = [self.config.text_column, files, cut, [self.revision] if self.revision else []]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def read(self, shard: Shard) -> Documents:
        """The documents of a shard.

        Raises:
            UserError: one is bad and `data.on_bad_document` is `stop`.
            ConnectionError: the shard cannot be fetched, after several tries.
            OSError: its file has changed since it was opened.
        """
        try:
            rows = self._rows(shard)
        except DamagedShard as error:
            self._check_size(shard)
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

    def _check_size(self, shard: Shard) -> None:
        """Raise OSError where a shard was damaged after its file was opened: a run without it would be
        another run."""
        path = self._file_of(shard)
        if path not in self.file_sizes or is_remote(path):
            return
        here = local_path(path)
        size = here.stat().st_size if here.is_file() else 0
        if size != self.file_sizes[path]:
            raise OSError(
                f"{path} had {self.file_sizes[path]:,} bytes when the run began, and has {size:,} now: bring "
                "it back as it was, and the same command goes on"
            )

    def _file_of(self, shard: Shard) -> str:
        """Which of `file_sizes` a shard is read from."""
        return shard.path

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


def _name(path: str) -> str:
    """A file's name, without what signs its URL."""
    is_on_web = path.startswith(("http://", "https://"))
    return os.path.basename(path.partition("?")[0] if is_on_web else path)
