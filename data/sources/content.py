"""What a file holds, here or remote, plain or compressed: fetched in pieces, so that memory stays small."""

import bz2
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import zstandard
from tqdm import tqdm

from model.errors import UserError

from .network import filesystem_of, is_damage
from .places import is_remote
from .remote import read_range

PIECE_BYTES = 2**22  # one request per piece where the file is remote
DECODED_BYTES = 2**14  # at once, as they may become a thousand times as many
BAR_AFTER_SECONDS = 5.0
_DECODERS: dict[str, Callable[[], Any]] = {
    ".gz": partial(zlib.decompressobj, wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(),
}


class DamagedContent(EOFError):
    """A compressed file cannot be decompressed behind its first `at` bytes."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


def content_of(
    path: str, storage_options: dict[str, Any], size: int, bar: bool, timeout_s: float
) -> Iterator[bytes]:
    """The content of a file of `size` bytes in pieces that are not empty, decompressed as its name says.

    Raises:
        ConnectionError: a remote file cannot be fetched for `timeout_s`.
        UserError: a file here cannot be read.
        DamagedContent: a compressed file cannot be decompressed, or ends before its content does.
    """
    pieces = _pieces(path, storage_options, size, bar, timeout_s)
    suffix = Path(path.partition("?")[0]).suffix
    if suffix not in _DECODERS:
        yield from pieces
        return
    decoder = None
    at = 0
    for piece in pieces:
        for begin in range(0, len(piece), DECODED_BYTES):
            rest = piece[begin : begin + DECODED_BYTES]
            while rest:  # compressed files may follow one another
                decoder = decoder or _DECODERS[suffix]()
                try:
                    content = decoder.decompress(rest)
                except Exception as error:
                    if not is_damage(error):
                        raise
                    raise DamagedContent(str(error), at + begin) from error
                if content:
                    yield content
                rest = decoder.unused_data if decoder.eof else b""
                decoder = None if decoder.eof else decoder
        at += len(piece)
    if decoder is not None:
        raise DamagedContent(f"{path} ends in the middle of its content", at)


def late_bar(*arguments: Any, **options: Any) -> tqdm:
    """A tqdm bar that shows only where the work takes longer than `BAR_AFTER_SECONDS`."""
    return tqdm(*arguments, delay=BAR_AFTER_SECONDS, mininterval=BAR_AFTER_SECONDS, **options)


def _pieces(
    path: str, storage_options: dict[str, Any], size: int, bar: bool, timeout_s: float
) -> Iterator[bytes]:
    """The bytes of a file. What the network drops is read again."""

    def read(start: int, length: int) -> bytes:
        if is_remote(path):
            return read_range(path, storage_options, start, start + length, timeout_s).to_pybytes()
        filesystem, location = filesystem_of(path, storage_options)
        with filesystem.open(location, "rb", cache_type="none") as file:
            file.seek(start)
            return file.read(length)

    title = os.path.basename(path)
    with late_bar(desc=title, total=size, unit="B", unit_scale=True, disable=not bar) as progress:
        for start in range(0, size, PIECE_BYTES):
            length = min(PIECE_BYTES, size - start)
            try:
                piece = read(start, length)
            except ConnectionError:
                raise
            except OSError as error:  # so that it is not taken for one of writing
                raise UserError(f"data.source: {path} cannot be read ({error})") from error
            if len(piece) < length:
                raise ConnectionError(
                    f"{path} has become shorter while it was read: once it is whole, the same command goes "
                    "on from there"
                )
            yield piece
            progress.update(length)
