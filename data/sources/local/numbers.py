"""How a .bin file without a header stores its numbers, by what a few places of it look like.

The tokens of a text, read as numbers of another kind, are no tokens: two of uint16 are an uint32 far beyond
any vocabulary, unless every second is 0. So a file that is plausible as another kind is of that kind.
"""

import os

import numpy as np

WINDOWS = 8
WINDOW_BYTES = 2**11
LARGEST_TOKEN = 2**18
FEWEST = 8
"""Fewer different numbers prove nothing: `wow!wow!` is a token and 0 in turn, as one uint32 is."""
FEWEST_WHERE_LESS_SPEAKS = 64
FEWEST_LETTERS = 16
SWAPPED = 8
"""Common words have small tokens: with the bytes of each swapped, the median is so many times as large."""
_CONTAINERS = {
    b"\x93NUMPY": "a numpy file with a header, `numpy.load(f).astype('{dtype}').tofile(f)` takes it away",
    b"PK\x03\x04": "a zip archive, as torch.save writes it",
    b"\x1f\x8b": "compressed by gzip, decompress it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd, decompress it",
    b"PAR1": "a parquet file, name it .parquet",
}
_KINDS = {
    "<u8": "int64",
    "<u4": "uint32 or int32",
    ">u8": "int64",
    ">u4": "uint32 or int32",
    "<f8": "float64",
    "<f4": "float32",
    ">f8": "float64",
    ">f4": "float32",
    "<f2": "float16",
}
"""The wide ones first, as half of an int64 is an uint32 of 0."""


def number_problem(path: str, dtype: np.dtype) -> str | None:
    """Why a file is not one of tokens stored as `dtype`, and what mends it; None where nothing speaks
    against it."""
    windows = _windows(path)
    begin = windows[:8]
    for magic, what in _CONTAINERS.items():
        if begin.startswith(magic):
            return f"is {what.format(dtype=dtype.name)}"
    if _is_text(windows):
        return "holds text, not tokens: write it as JSON lines or parquet"
    for code, name in _KINDS.items():
        values = np.frombuffer(windows, code)
        if values.dtype != dtype and _is_plausible(values):
            return _of_another_kind(code, name, dtype, int(values.max()))
    if dtype.itemsize == 2 and _is_swapped(np.frombuffer(windows, dtype)):
        return _of_another_kind(">u2", "uint16", dtype, 0)
    return None


def _of_another_kind(code: str, name: str, dtype: np.dtype, largest: int) -> str:
    what = f"holds {'big-endian ' if code.startswith('>') else ''}{name}, not {dtype.name}"
    if largest > np.iinfo(dtype).max:  # which a cast would cut off
        return (
            f"{what}, and tokens up to {largest}: name the tokenizer that it was made with in data.tokenizer"
        )
    return f"{what}: `numpy.fromfile(f, '{code}').astype('{dtype.name}').tofile(f)` mends it"


def _windows(path: str) -> bytes:
    """Parts from all over a file, each at a multiple of 8 bytes and so long."""
    size = os.path.getsize(path) // 8 * 8
    if size <= WINDOWS * WINDOW_BYTES:
        return np.fromfile(path, np.uint8, size).tobytes()
    last = size - WINDOW_BYTES
    starts = [last * number // (WINDOWS - 1) // 8 * 8 for number in range(WINDOWS)]
    return b"".join(np.fromfile(path, np.uint8, WINDOW_BYTES, offset=start).tobytes() for start in starts)


def _is_text(windows: bytes) -> bool:
    """Whether no byte is a control character, which small tokens are full of, and the beginning is UTF-8."""
    controls = bytes({*range(32)} - {*b"\t\n\f\r\x1b"})
    if len({*windows}) < FEWEST_LETTERS or windows.translate(None, controls) != windows:
        return False
    beginning = windows[:WINDOW_BYTES]
    # the last character may be cut
    return any(_decodes(beginning[: len(beginning) - cut]) for cut in range(4))


def _decodes(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_plausible(values: np.ndarray) -> bool:
    """Whether all numbers may be tokens, and enough of them differ for it to be no chance."""
    is_float16 = values.dtype.itemsize == 2
    if is_float16:
        values = values.astype(np.float32)
    with np.errstate(invalid="ignore"):
        if not np.all((values >= 0) & (values < LARGEST_TOKEN)):
            return False
        if values.dtype.kind == "f" and not np.all(values == np.floor(values)):
            return False
    different = len(np.unique(values[values > 0]))
    is_certain = np.all(values < 2**16) and not is_float16
    return different >= (FEWEST if is_certain else FEWEST_WHERE_LESS_SPEAKS)


def _is_swapped(values: np.ndarray) -> bool:
    values = values[values > 0]
    if len(np.unique(values)) < FEWEST_WHERE_LESS_SPEAKS:
        return False
    return bool(np.median(values) > SWAPPED * np.median(values.byteswap()))
