"""Files of tokens as nanoGPT and llm.c write them."""

import struct
from pathlib import Path

import numpy as np

from data import open_tokenizer

EOT = 50256


def nanogpt_file(path: Path, texts: list[str]) -> None:
    """As nanoGPT's prepare.py: uint16, the end of text after each document."""
    encode = open_tokenizer("gpt2").encode
    ids = [token for text in texts for token in [*encode(text).tolist(), EOT]]
    np.array(ids, dtype=np.uint16).tofile(path)


def llm_c_file(path: Path, texts: list[str]) -> None:
    """As llm.c's data_common.py: a header, then uint16, the end of text before each document."""
    encode = open_tokenizer("gpt2").encode
    ids = [token for text in texts for token in [EOT, *encode(text).tolist()]]
    header = struct.pack("<256i", 20240520, 1, len(ids), *[0] * 253)
    path.write_bytes(header + np.array(ids, dtype=np.uint16).tobytes())
