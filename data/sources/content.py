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

from .network import filesystem_of, with_retries

PIECE_BYTES = 2**22  # one request per piece where the file is remote
DECODED_BYTES = 2**14  # at once, as they may become a thousand times as many
BAR_AFTER_SECONDS = 5.0
_DECODERS: dict[str, Callable[[], Any]] = {
    ".gz": partial(zlib.decompressobj, wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(),
}


def content_of(path: str, storage_options: dict[str, Any], size: int, bar: bool) -> Iterator[bytes]:
    """The content of a file of `size` bytes in pieces that are not empty, decompressed as its name says.

    Raises:
        ConnectionError: a remote file cannot be fetched, after several tries.
        UserError: a file here cannot be read.
        EOFError: a compressed file ends before its content does.
    """
    pieces = _pieces(path, storage_options, size, bar)
    suffix = Path(path.partition("?")[0]).suffix.lower()
    if suffix not in _DECODERS:
        yield from pieces
        return
    decoder = None
    for piece in pieces:
        for begin in range(0, len(piece), DECODED_BYTES):
            rest = piece[begin : begin + DECODED_BYTES]
            while rest:  # compressed files may follow one another
                decoder = decoder or _DECODERS[suffix]()
                if content := decoder.decompress(rest):
                    yield content
                rest = decoder.unused_data if decoder.eof else b""
                decoder = None if decoder.eof else decoder
    if decoder is not None:
        raise EOFError(f"{path} ends in the middle of its content")


def late_bar(*arguments: Any, **options: Any) -> tqdm:
    """A tqdm bar that shows only where the work takes longer than `BAR_AFTER_SECONDS`."""
    return tqdm(*arguments, delay=BAR_AFTER_SECONDS, mininterval=BAR_AFTER_SECONDS, **options)


def _pieces(path: str, storage_options: dict[str, Any], size: int, bar: bool) -> Iterator[bytes]:
    """The bytes of a file. One that the network drops is read again."""
    filesystem, location = filesystem_of(path, storage_options)

    def read(start: int, length: int) -> bytes:
        with filesystem.open(location, "rb", cache_type="none") as file:
            file.seek(start)
            piece = file.read(length)
        if len(piece) < length:
            raise ConnectionError(f"{path} gave {len(piece)} bytes instead of {length}")
        return piece

    title = os.path.basename(path)
    with late_bar(desc=title, total=size, unit="B", unit_scale=True, disable=not bar) as progress:
        for start in range(0, size, PIECE_BYTES):
            length = min(PIECE_BYTES, size - start)
            try:
                piece = with_retries(partial(read, start, length), path)
            except ConnectionError:
                raise
            except OSError as error:  # so that it is not taken for one of writing
                raise UserError(f"data.source: {path} cannot be read ({error})") from error
            yield piece
            progress.update(length)
