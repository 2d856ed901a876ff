"""The file of a token shard: what llm.c reads, with a checksum and what NormLab needs besides.

A header of 256 little-endian int32 and the tokens as uint16, or as uint32 for a vocabulary above 65,536. The
first three numbers are llm.c's; of the spare ones some hold our own.
"""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from model.files import write_whole

from ..interrupts import check_interrupted
from ..tokenizer import NotTokenizable, Tokenizer
from .documents import BAD_REASONS, BadRow, DamagedShard, Document, Documents, Shard, Source

HEADER_BYTES = 1024
TOKENS = 2
"""Where the header says how many tokens follow."""
# our own places; with them, and with the order of BAD_REASONS, token_shards.SHARDS_FORMAT changes
_DOCUMENTS, _BAD, _TEXT_BYTES, _CHECKSUM = 3, 4, 252, 254


class LlmCFormat(NamedTuple):
    """A version of llm.c's files, and how their tokens are stored and used."""

    version: int
    stored: np.dtype
    used: np.dtype


FORMATS = {  # by llm.c's magic number
    20240520: LlmCFormat(1, np.dtype("<u2"), np.dtype(np.uint16)),
    20240801: LlmCFormat(7, np.dtype("<u4"), np.dtype(np.int32)),
}


class ShardFacts(NamedTuple):
    """What a shard's header says of it.

    Attributes:
        tokens: With the `eot` of every document.
        documents: The documents that are there.
        text_bytes: Their texts' UTF-8 bytes.
        bad: The documents that were left out, by reason.
        bytes: The size of the file.
        xxh3: The checksum of all else in the file, as 16 hexadecimal digits.
    """

    tokens: int
    documents: int
    text_bytes: int
    bad: dict[str, int]
    bytes: int
    xxh3: str


def tokenized(source: Source, shard: Shard, tokenizer: Tokenizer) -> tuple[Documents, int]:
    """A shard's documents, each as its tokens and the `eot` that closes it, and their texts' UTF-8 bytes.

    Raises:
        UserError, ConnectionError: as `Source.read`, where the tokenizer fails on one too.
        Interrupted: it was.
    """
    documents = source.read(shard)
    made = Documents([], Counter(documents.bad))
    text_bytes = 0
    for one in documents.kept:
        check_interrupted()
        if not isinstance(one, str):
            made.kept.append(one)
            text_bytes += len(tokenizer.decode_bytes(one[:-1]))
            continue
        try:
            made.kept.append(tokenizer.encode_document(one))
            text_bytes += len(one.encode())
        except NotTokenizable:
            source.leave_out(one, [shard], "not_tokenizable")
            made.bad["not_tokenizable"] += 1
    return made, text_bytes


def as_rows(documents: Documents) -> list[Document | BadRow | None]:
    """Documents as `Source._rows` gives them, the bad ones last."""
    return [*documents.kept, *map(BadRow, documents.bad.elements())]


def write_shard(path: str, documents: Documents, dtype: np.dtype, text_bytes: int = 0) -> None:
    """Writes documents that are tokens of `dtype`: all of the file or nothing, even when several processes
    write it at once.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    magic, format_ = next((magic, one) for magic, one in FORMATS.items() if one.used == dtype)
    tokens = np.concatenate([np.empty(0, dtype), *documents.kept]).astype(format_.stored, copy=False)
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:_BAD] = magic, format_.version, len(tokens), len(documents.kept)
    header[_BAD : _BAD + len(BAD_REASONS)] = [documents.bad[reason] for reason in BAD_REASONS]
    header[_TEXT_BYTES:_CHECKSUM].view("<u8")[0] = text_bytes
    header[_CHECKSUM:].view("<u8")[0] = _checksum(header, tokens)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(header.tobytes())
            file.write(tokens.tobytes())

    write_whole(Path(path), write)


def read_shard(path: str, eot: int, xxh3: str | None = None) -> Documents:
    """The documents of a shard, as views of its tokens.

    Args:
        path: A file of `write_shard`.
        eot: The token that closes every document.
        xxh3: The checksum that the shard must have, where it is known.

    Raises:
        DamagedShard: the file is cut off, was changed, or is another.
        OSError: there is no such file, or it cannot be read.
    """
    content = np.fromfile(path, dtype=np.uint8)
    header = content[: HEADER_BYTES if len(content) >= HEADER_BYTES else 0].view("<i4")
    format_ = FORMATS.get(int(header[0])) if len(header) else None
    if format_ is None or len(content) != HEADER_BYTES + int(header[TOKENS]) * format_.stored.itemsize:
        raise DamagedShard(f"{path} is cut off or not a token shard")
    tokens = content[HEADER_BYTES:].view(format_.stored)
    checksum = int(header[_CHECKSUM:].view("<u8")[0])
    if _checksum(header, tokens) != checksum or xxh3 not in (None, f"{checksum:016x}"):
        raise DamagedShard(f"{path} does not fit its checksum")
    tokens = tokens.view(format_.used)
    ends = (np.flatnonzero(tokens == eot) + 1).tolist()
    if len(ends) != header[_DOCUMENTS] or (ends[-1] if ends else 0) != len(tokens):
        raise DamagedShard(f"{path} was written with another end of text than {eot}")
    kept: list[Document] = [tokens[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    return Documents(kept, _bad(header))


def shard_facts(path: str) -> ShardFacts:
    """What the header of a shard says, which `read_shard` has found whole."""
    header = np.fromfile(path, "<i4", HEADER_BYTES // 4)
    return ShardFacts(
        int(header[TOKENS]),
        int(header[_DOCUMENTS]),
        int(header[_TEXT_BYTES:_CHECKSUM].view("<u8")[0]),
        dict(_bad(header)),
        os.path.getsize(path),
        f"{int(header[_CHECKSUM:].view('<u8')[0]):016x}",
    )


def _bad(header: np.ndarray) -> Counter[str]:
    return +Counter(dict(zip(BAD_REASONS, header[_BAD:].tolist(), strict=False)))


def _checksum(header: np.ndarray, tokens: np.ndarray) -> int:
    checksum = xxhash.xxh3_64(header[:_CHECKSUM].data)
    checksum.update(tokens.data)
    return checksum.intdigest()
