"""nanoGPT's and llm.c's .bin files: tokens in a row, documents told apart by the end of text."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from model.errors import UserError

from ..config import DataConfig
from ..tokenizer import Tokenizer
from .documents import BadRow, DamagedShard, Document, Shard, Source
from .local import number_problem
from .shard_file import FORMATS, HEADER_BYTES, TOKENS

SHARDS = 1024
"""About so many are made of all files, of `SHARD_TOKENS` at least and at most."""
SHARD_TOKENS = (2**8, 2**20)
LONGEST_RUN = 2**20
"""More tokens than this without an `eot` are cut where a shard's nominal end is."""
_WINDOW = 2**14


class BinFiles(Source):
    """Documents of .bin files.

    Whether an `eot` stands before each document or after it, a document is what lies between two, or between
    one and the file's end. A shard ends with a document, behind the first `eot` from its nominal end on; only
    where there is none for `LONGEST_RUN` tokens the document is cut, and each part becomes one.
    """

    holds_tokens = True

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, paths: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._files = {path: _bin_file(path, tokenizer) for path in paths}
        smallest, largest = SHARD_TOKENS
        total = sum(file.tokens for file in self._files.values())
        size = min(max(total // SHARDS, smallest), largest)
        self._parts = {path: max(1, round(file.tokens / size)) for path, file in self._files.items()}
        shards: list[Shard] = []
        for path, parts in self._parts.items():
            shards += [Shard(len(shards) + part, path, part, 0, 0) for part in range(parts)]
        super().__init__(config, {path: os.path.getsize(path) for path in paths}, shards)
        self._read(paths[0], 0, min(_WINDOW, self._files[paths[0]].tokens))  # another tokenizer shows at once

    def _rows(self, shard: Shard) -> list[Document | BadRow | None]:
        begin, end = self._begin(shard.path, shard.group), self._begin(shard.path, shard.group + 1)
        tokens, eot = self._read(shard.path, begin, end), self._tokenizer.eot
        if begin == 0 and tokens[0] == eot:  # it opens the first document
            tokens = tokens[1:]
        ends = (np.flatnonzero(tokens == eot) + 1).tolist()
        rows: list[Document | BadRow | None] = [
            tokens[first:last] if last - first > 1 else None
            for first, last in zip([0, *ends], ends, strict=False)
        ]
        rest = tokens[ends[-1] if ends else 0 :]
        return [*rows, np.append(rest, tokens.dtype.type(eot))] if len(rest) else rows

    def _begin(self, path: str, part: int) -> int:
        """The first token of a part."""
        tokens, parts = self._files[path].tokens, self._parts[path]
        nominal = tokens * part // parts
        if part in (0, parts):
            return nominal
        end = min(nominal - 1 + LONGEST_RUN, tokens)
        for begin in range(nominal - 1, end, _WINDOW):
            found = np.flatnonzero(self._read(path, begin, min(begin + _WINDOW, end)) == self._tokenizer.eot)
            if len(found):
                return begin + int(found[0]) + 1
        if end == tokens and self._tokenizer.eot in self._read(path, max(0, tokens - LONGEST_RUN), nominal):
            return tokens  # inside the file's last document
        return nominal

    def _read(self, path: str, begin: int, end: int) -> np.ndarray:
        """The tokens `begin` to `end`; nothing stays open that a forked process would share."""
        file, tokenizer = self._files[path], self._tokenizer
        place = file.offset + begin * file.dtype.itemsize
        tokens = np.fromfile(path, file.dtype, end - begin, offset=place)
        if len(tokens) < end - begin:
            raise DamagedShard(f"it ends before token {end}")
        if len(tokens) and tokens.max() >= tokenizer.vocab_size:
            raise UserError(
                f"data.source: {path} holds token {tokens.max()}, but data.tokenizer {tokenizer.name} has "
                f"only {tokenizer.vocab_size}: name the tokenizer that the file was made with"
            )
        return tokens.astype(tokenizer.dtype, copy=False)


class _BinFile(NamedTuple):
    dtype: np.dtype
    offset: int
    tokens: int


def _bin_file(path: str, tokenizer: Tokenizer) -> _BinFile:
    """What a file holds: llm.c's says it itself, nanoGPT's is nothing but tokens."""
    size = os.path.getsize(path)
    header = np.fromfile(path, "<i4", HEADER_BYTES // 4)
    format_ = FORMATS.get(int(header[0])) if len(header) == HEADER_BYTES // 4 else None
    if format_ is not None:
        dtype, version = format_.stored, int(header[1])
        file = _BinFile(dtype, HEADER_BYTES, int(header[TOKENS]))
        if version != format_.version:
            raise UserError(
                f"data.source: {path} is version {version} of llm.c's format, but only version "
                f"{format_.version} is known"
            )
    else:
        dtype = np.dtype(f"<u{tokenizer.dtype.itemsize}")
        problem = number_problem(path, dtype)
        if problem is not None:
            raise UserError(f"data.source: {path} {problem}")
        file = _BinFile(dtype, 0, size // dtype.itemsize)
    expected = file.offset + file.tokens * dtype.itemsize
    if size != expected:
        whole = f"by its header it has {expected}" if file.offset else f"a token has {dtype.itemsize}"
        raise UserError(
            f"data.source: {path} has {size} bytes, but {whole}: it is cut off or holds no tokens"
        )
    if file.tokens == 0:
        raise UserError(f"data.source: {path} holds no tokens")
    return file
