"""Token shards as a source: a folder of `scripts/tokenize_data.py`, or nanoGPT's and llm.c's files.

A folder has the shards of the source that it was made of, each with the same documents in the same order, so
that a run reads the same sequences from either.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from model.errors import UserError

from ..config import DataConfig
from ..tokenizer import Tokenizer
from .documents import FORM, BadRow, DamagedShard, Document, Shard, Source
from .shard_file import as_rows, read_shard

SHARDS_FORMAT = 1
"""Of a folder: its shards' header and its manifest."""
DESCRIPTION = "source.json"
"""What a folder is made of; there from the start."""
MANIFEST = "manifest.json"
"""The same with the totals and the shards; written last."""


def corpus_fingerprint(source: Source, tokenizer: Tokenizer) -> str:
    """A hash of what a run reads: the same for a source and for the token shards made of it."""
    return FORM + _with_tokenizer(source.fingerprint, tokenizer)


def older_corpus_fingerprint(source: Source, tokenizer: Tokenizer) -> str:
    """The same as NormLab made it before it hashed the content of files."""
    return _with_tokenizer(source.older_fingerprint, tokenizer)


def _with_tokenizer(fingerprint: str, tokenizer: Tokenizer) -> str:
    return hashlib.sha256(f"{fingerprint} {tokenizer.fingerprint}".encode()).hexdigest()


def shard_path(folder: str, index: int) -> str:
    """Where a folder keeps shard `index`."""
    return os.path.join(folder, f"shard_{index:08d}.bin")


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder of `scripts/tokenize_data.py`, None for any other place.

    It has no totals and no shards until the folder is complete. Raises UserError where the folder has our
    shards and no manifest that can be read.
    """
    broken = None
    for name in (MANIFEST, DESCRIPTION):
        try:
            description = json.loads((folder / name).read_text())
        except OSError:
            continue
        except ValueError:
            broken = folder / name
            continue
        if isinstance(description, dict) and "token_shards_format" in description:
            return description
    if broken and os.path.exists(shard_path(str(folder), 0)):
        raise _broken(broken, "it is not JSON")
    return None


def open_token_folder(
    config: DataConfig, tokenizer: Tokenizer, folder: Path, manifest: dict[str, Any]
) -> "TokenFolder":
    """The documents of a folder with a manifest. Raises UserError as `TokenFolder`, and where the manifest
    lacks something."""
    try:
        return TokenFolder(config, tokenizer, folder, manifest)
    except KeyError as error:
        raise _broken(folder / MANIFEST, f"it has no {error}") from error
    except (AttributeError, TypeError) as error:
        raise _broken(folder / MANIFEST, f"{error}") from error


def _broken(path: Path, why: str) -> UserError:
    return UserError(
        f"data.source: {path} is not as scripts/tokenize_data.py wrote it ({why}): make the folder again"
    )


class TokenFolder(Source):
    """A folder of `scripts/tokenize_data.py`, with the shards and the fingerprint of what it was made of.

    Raises UserError where it is not whole, or was made with another tokenizer or other settings.
    """

    holds_tokens = True

    def __init__(
        self, config: DataConfig, tokenizer: Tokenizer, folder: Path, manifest: dict[str, Any]
    ) -> None:
        if "shards" not in manifest:
            raise UserError(
                f"data.source: {config.source} is not complete: run scripts/tokenize_data.py again to "
                "complete it"
            )
        _check_manifest(config, tokenizer, manifest)
        self._eot = tokenizer.eot
        self._files: list[tuple[str, str]] = []  # path and checksum
        shards, sizes = [], {}
        for index, entry in enumerate(manifest["shards"]):
            path = str(folder / entry["file"])
            sizes[path] = os.path.getsize(path) if os.path.isfile(path) else -1
            if sizes[path] != entry["bytes"]:
                raise UserError(
                    f"data.source: {path} {'is missing' if sizes[path] < 0 else 'has not its size'}: "
                    "run scripts/tokenize_data.py again to mend it"
                )
            self._files.append((path, entry["xxh3"]))
            shards.append(Shard(index, entry["path"], entry["group"], entry["first_row"], entry["rows"]))
        super().__init__(config, sizes, shards)
        self.fingerprint = manifest["fingerprint"]
        self.older_fingerprint = manifest.get("older_fingerprint", manifest["fingerprint"])
        self.shards_per_window = manifest.get("shards_per_window", 1)

    def _file_of(self, shard: Shard) -> str:
        return self._files[shard.index][0]

    def _rows(self, shard: Shard) -> list[Document | BadRow | None]:
        path, xxh3 = self._files[shard.index]
        try:
            documents = read_shard(path, self._eot, xxh3)
        except DamagedShard as error:
            raise DamagedShard(f"{error}, scripts/tokenize_data.py makes it again") from error
        return as_rows(documents)


def _check_manifest(config: DataConfig, tokenizer: Tokenizer, manifest: dict[str, Any]) -> None:
    where, made_with, longest = config.source, manifest["tokenizer"], manifest["max_document_bytes"]
    if manifest["token_shards_format"] != SHARDS_FORMAT:
        raise UserError(
            f"data.source: {where} has token shards of format {manifest['token_shards_format']}, but this "
            f"NormLab reads format {SHARDS_FORMAT}: make them again with scripts/tokenize_data.py"
        )
    if made_with["fingerprint"] != tokenizer.fingerprint:
        what = "another file of that name" if made_with["name"] == tokenizer.name else made_with["name"]
        raise UserError(f"data.tokenizer is {tokenizer.name!r}, but {where} was made with {what}")
    if config.max_document_bytes not in (longest, DataConfig.max_document_bytes):
        raise UserError(
            f"data.max_document_bytes is {config.max_document_bytes}, but {where} was made with {longest}: "
            "leave it out"
        )
    if manifest["bad"] and config.on_bad_document == "stop":
        bad = ", ".join(f"{count} {reason}" for reason, count in manifest["bad"].items())
        raise UserError(
            f"data.on_bad_document is stop, but {where} was made of a source with bad documents ({bad}): "
            "mend them and make it again, or set it to skip"
        )
