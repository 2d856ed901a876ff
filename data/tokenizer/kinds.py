"""Tokenizers: GPT-2's byte pairs without a download, plain bytes, any of tiktoken's, a tokenizer.json.

A document is its tokens and one `eot`, which stands nowhere else: text that looks like a special token is
ordinary text.
"""

import functools
import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.errors import UserError

from .gpt2 import gpt2_encoding
from .parts import encode_in_parts, has_long_run

if TYPE_CHECKING:
    import tiktoken

_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")


class NotTokenizable(UserError):
    """A text that its tokenizer fails on."""


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        name: What `data.tokenizer` said.
        vocab_size: The number of token ids.
        eot: The id that closes every document.
        fingerprint: Changes with anything that changes the tokens.
        dtype: uint16 where the vocabulary fits, else int32.
        file: The tokenizer.json that it was read from; None where its name says all.
        keeps_text: Whether every text surely comes back from its tokens.
    """

    file: Path | None = None
    keeps_text = True

    def __init__(self, name: str, vocab_size: int, eot: int, fingerprint: str) -> None:
        self.name = name
        self.vocab_size = vocab_size
        self.eot = eot
        self.fingerprint = fingerprint
        self.dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)

    def encode_document(self, text: str) -> np.ndarray:
        """The tokens of one document and the `eot` that closes it: (n + 1,) `dtype`."""
        tokens = self.encode(text)
        document = np.empty(len(tokens) + 1, dtype=self.dtype)
        document[:-1] = tokens
        document[-1] = self.eot
        return document

    def encode(self, text: str) -> np.ndarray:
        """The tokens of `text`, (n,), special tokens in it read as ordinary text.

        Raises NotTokenizable where the tokenizer fails, in whatever way.
        """
        try:
            return self._encode(text)
        except MemoryError:
            raise
        except BaseException as error:
            # a panic of the libraries' Rust is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            beginning = " ".join(text[:200].split())[:60]
            raise NotTokenizable(
                f"data.tokenizer: {self.name} fails on the text of {len(text):,} characters that begins "
                f"{beginning!r} ({type(error).__name__}: {error})"
            ) from error

    def decode(self, tokens: np.ndarray) -> str:
        """The text of whole documents; what is no UTF-8 becomes the replacement character."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    @abstractmethod
    def _encode(self, text: str) -> np.ndarray:
        """What `encode` gives; it may raise whatever it likes."""

    @abstractmethod
    def decode_bytes(self, tokens: np.ndarray) -> bytes:
        """The text of `tokens`, which hold no `eot`, as UTF-8."""


class TiktokenTokenizer(Tokenizer):
    """One of tiktoken's encodings."""

    def __init__(self, name: str, encoding: "tiktoken.Encoding") -> None:
        self.encoding = encoding
        super().__init__(name, encoding.n_vocab, encoding.eot_token, f"{name} {encoding.n_vocab}")

    def _encode(self, text: str) -> np.ndarray:
        if not has_long_run(text):
            try:
                return self.encoding.encode_to_numpy(text, disallowed_special=())
            except ValueError:  # of its regular expressions, which bear runs of about a million characters
                pass
        return np.array(encode_in_parts(self.encoding, text), self.dtype)

    def decode_bytes(self, tokens: np.ndarray) -> bytes:
        return self.encoding.decode_bytes(tokens.tolist())


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8 and an end of text: 257 symbols."""

    def __init__(self) -> None:
        super().__init__("bytes", 257, 256, "bytes 257")

    def _encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8)

    def decode_bytes(self, tokens: np.ndarray) -> bytes:
        return tokens.astype(np.uint8).tobytes()


class FileTokenizer(Tokenizer):
    """A Hugging Face `tokenizer.json`, which `data.tokenizer` names, or a copy of it in `file`."""

    keeps_text = False

    def __init__(self, path: str, file: Path | None = None) -> None:
        import tokenizers

        self.file = file or Path(path)
        content = self.file.read_bytes()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # tokenizers raises plain Exception for a file that it cannot parse
            raise UserError(f"data.tokenizer: {path} is no Hugging Face tokenizer ({error})") from error
        self._tokenizer.encode_special_tokens = True  # as ordinary text
        self._tokenizer.no_truncation()  # which many files come with, as they do with padding
        self._tokenizer.no_padding()
        ids = (self._tokenizer.token_to_id(token) for token in _END_OF_TEXT)
        eot = next((token for token in ids if token is not None), None)
        if eot is None:
            raise UserError(
                f"data.tokenizer: {path} has no token that ends a text; it may be {', '.join(_END_OF_TEXT)}"
            )
        super().__init__(
            path,
            max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
            eot,
            hashlib.sha256(content).hexdigest(),
        )

    def _encode(self, text: str) -> np.ndarray:
        ids = np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=self.dtype)
        return ids[ids != self.eot]  # some vocabularies have it among the ordinary tokens too

    def decode_bytes(self, tokens: np.ndarray) -> bytes:
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False).encode()


@functools.cache
def open_tokenizer(name: str, kept: Path | None = None) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names: `gpt2`, `bytes`, a tiktoken encoding, or a tokenizer.json.

    Args:
        name: What `data.tokenizer` says.
        kept: A copy of the tokenizer.json, which is read in its place.

    Raises:
        UserError: no such encoding or file, or a file that is no tokenizer or has no end of text.
        OSError: the vocabulary is not installed, or cannot be downloaded.
    """
    if name == "gpt2":
        return TiktokenTokenizer(name, gpt2_encoding())
    if name == "bytes":
        return ByteTokenizer()
    if kept is not None:
        return FileTokenizer(name, kept)
    if name.endswith(".json"):
        if not Path(name).expanduser().is_file():
            raise UserError(f"data.tokenizer: {name} does not exist")
        return FileTokenizer(str(Path(name).expanduser()))
    import tiktoken

    encodings = [known for known in tiktoken.list_encoding_names() if known != "gpt2"]
    if name not in encodings:
        raise UserError(
            f"data.tokenizer is {name!r}: it may be gpt2, bytes, the path of a tokenizer.json, or tiktoken's "
            f"{', '.join(encodings)}"
        )
    try:
        return TiktokenTokenizer(name, tiktoken.get_encoding(name))
    except OSError as error:
        raise ConnectionError(
            f"data.tokenizer: tiktoken cannot download the vocabulary of {name} ({type(error).__name__}): "
            "set TIKTOKEN_CACHE_DIR to a folder that holds it"
        ) from error
