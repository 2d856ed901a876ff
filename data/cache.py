"""A cache of tokens: what was tokenised once is read back, by later epochs, other runs and resumes."""

import hashlib
import json
import logging
import os
import tempfile

from .config import DataConfig
from .sources.documents import BadRow, DamagedShard, Document, Documents, Shard, Source
from .sources.shard_file import as_rows, read_shard, tokenized, write_shard
from .sources.token_shards import FORMAT, corpus_fingerprint, shard_path
from .tokenizer import Tokenizer

_log = logging.getLogger(__name__)


class CachedSource(Source):
    """A source as token documents, each shard tokenised when it is first read and kept as a file.

    Several processes may share a folder. A damaged file is made again; one that cannot be written is done
    without.

    Attributes:
        folder: Where the shards are, a folder in `cache_dir`: another with anything that changes the tokens.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, cache_dir: str) -> None:
        """Raises ValueError where `cache_dir` cannot be written."""
        super().__init__(source.config, source.file_sizes, source.shards)
        self.fingerprint = source.fingerprint
        self.notes = source.notes
        self._source = source
        self._tokenizer = tokenizer
        self._warned = False
        key = [FORMAT, corpus_fingerprint(source, tokenizer), self.config.max_document_bytes]
        # a file that was edited may have its old size, and so its old fingerprint
        key += [os.stat(path).st_mtime_ns for path in source.file_sizes if os.path.exists(path)]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.folder = os.path.abspath(os.path.join(os.path.expanduser(cache_dir), name))
        try:
            os.makedirs(self.folder, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ValueError(
                f"data.cache_dir is {cache_dir!r}, which cannot be written ({error.strerror}): "
                "name a folder that can, or leave it out."
            ) from error

    def ids(self, shard: Shard) -> list[str] | None:
        return self._source.ids(shard)

    def _rows(self, shard: Shard) -> list[Document | BadRow | None]:
        path = shard_path(self.folder, shard.index)
        documents = read_if_final(path, self._tokenizer.eot, self.config)
        if documents is None:
            documents = tokenized(self._source.read(shard), self._tokenizer)
            if not documents.bad["unreadable"]:
                self._keep(path, documents)
        return as_rows(documents)

    def _keep(self, path: str, documents: Documents) -> None:
        try:
            write_shard(path, documents, self._tokenizer.dtype)
        except OSError as error:
            if not self._warned:
                _log.warning("data.cache_dir: %s cannot be written (%s); going on without", path, error)
            self._warned = True


def read_if_final(path: str, eot: int, config: DataConfig) -> Documents | None:
    """The documents of a shard; None where the source must be read: the shard is not there or damaged, part
    of its source was unreadable, or it stands for bad documents that `data.on_bad_document` stops at."""
    try:
        documents = read_shard(path, eot)
    except (OSError, DamagedShard):
        return None
    if documents.bad["unreadable"] or (documents.bad and config.on_bad_document == "stop"):
        return None
    return documents
