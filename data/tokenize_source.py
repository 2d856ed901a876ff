"""Any source, tokenised once into a folder of token shards: what `scripts/tokenize_data.py` does."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from model.errors import UserError
from model.files import write_json, write_text

from .cache import read_if_final
from .config import DataConfig
from .parallel import in_processes, shard_runs_for
from .sources import (
    FORM,
    SHARDS_FORMAT,
    Shard,
    ShardFacts,
    Source,
    local_path,
    manifest_of,
    shard_facts,
    shard_path,
    tokenized,
    write_shard,
)
from .sources.token_shards import DESCRIPTION, MANIFEST
from .tokenizer import Tokenizer

LOCK_SECONDS = 10
"""So long the processes of a killed run may take to end."""


def tokenize_source(
    source: Source,
    config: DataConfig,
    tokenizer: Tokenizer,
    folder: str,
    workers: int,
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """Writes a source's token shards to `folder`, which then is a `data.source` itself; gives the manifest.

    Shards that are there and whole are not made again. Each process holds one shard at a time.

    Raises:
        UserError: the folder is inside the source, holds something else or is being written by another
            process, or a document is bad and `data.on_bad_document` is `stop`.
        OSError: the source cannot be read or the folder cannot be written.
    """
    description = _describe(source, config, tokenizer)
    if Path(folder).resolve().is_relative_to(local_path(config.source).resolve()):
        raise UserError(f"--out: {folder} is inside the source {config.source}: give a folder elsewhere")
    _prepare(Path(folder), description)
    lock = FileLock(os.path.join(folder, ".lock"))
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise UserError(f"--out: another process is writing to {folder}: wait for it") from error
    with lock:
        for partial in Path(folder).glob(".*.partial"):  # of a run that was killed
            partial.unlink()
        write_json(Path(folder, DESCRIPTION), description)
        facts = _make_shards(source, config, tokenizer, folder, workers, progress)
        manifest = _manifest(description, source, facts)
        write_text(Path(folder, MANIFEST), _to_json(manifest))
    return manifest


def _make_shards(
    source: Source, config: DataConfig, tokenizer: Tokenizer, folder: str, workers: int, progress: bool
) -> dict[int, ShardFacts]:
    def make(run: list[Shard]) -> Iterator[tuple[int, ShardFacts, bool]]:
        for shard in run:
            path = shard_path(folder, shard.index)
            is_there = read_if_final(path, tokenizer.eot, config) is not None
            if not is_there:
                made, size = tokenized(source, shard, tokenizer)
                write_shard(path, made, tokenizer.dtype, size)
            yield shard.index, shard_facts(path), is_there

    facts = {}
    begin, tokens = time.monotonic(), 0
    with tqdm(
        desc="tokenize",
        total=len(source.shards),
        unit="shard",
        disable=not progress,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 5.0,
    ) as bar:
        for index, facts_of_shard, is_there in in_processes(
            make, shard_runs_for(workers, source.shards), workers
        ):
            facts[index] = facts_of_shard
            if not is_there:
                tokens += facts_of_shard.tokens
                speed = tokens / (time.monotonic() - begin)
                bar.set_postfix_str(f"{speed / 1e6:.2f} M tokens/s", refresh=False)
            bar.update()
    return facts


def _describe(source: Source, config: DataConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    asked_for = ("files", "subset", "revision", "split", "text_column", "max_document_bytes")
    return {
        "token_shards_format": SHARDS_FORMAT,
        "source": source.name,
        **{key: getattr(config, key) for key in asked_for},
        "fingerprint": source.fingerprint,
        "older_fingerprint": source.older_fingerprint,
        "shards_per_window": source.shards_per_window,
        "tokenizer": {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eot": tokenizer.eot,
        },
    }


def _prepare(folder: Path, description: dict[str, Any]) -> None:
    """Makes the folder. Raises UserError where it holds anything but these token shards."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {folder} cannot be made a folder ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out: {folder} cannot be written")
    before = manifest_of(folder)
    if before is None:
        if any(path.name != ".lock" for path in folder.iterdir()):
            raise UserError(f"--out: {folder} holds other files: give a new or an empty folder")
        return
    if not before["fingerprint"].startswith(FORM):
        raise UserError(
            f"--out: {folder} was made by an older NormLab, which did not note what its source held: give "
            "another folder (where this one is complete it can still be trained on)"
        )
    if _made_of(before) != _made_of(description):
        made_of, longest = before["source"], before["max_document_bytes"]
        raise UserError(
            f"--out: {folder} holds {made_of} by {before['tokenizer']['name']} (documents of up to {longest} "
            "bytes), which has changed or is not what is asked for now: give another folder"
        )


def _made_of(description: dict[str, Any]) -> list[Any]:
    same = ("token_shards_format", "fingerprint", "max_document_bytes")
    return [description["tokenizer"]["fingerprint"], *(description[key] for key in same)]


def _manifest(description: dict[str, Any], source: Source, facts: dict[int, ShardFacts]) -> dict[str, Any]:
    bad: Counter[str] = Counter()
    for one in facts.values():
        bad.update(one.bad)
    names = _short_names([shard.path for shard in source.shards])
    return description | {
        "documents": sum(one.documents for one in facts.values()),
        "tokens": sum(one.tokens for one in facts.values()),
        "text_bytes": sum(one.text_bytes for one in facts.values()),
        "bad": dict(sorted(bad.items())),
        "shards": [
            {
                "file": os.path.basename(shard_path("", shard.index)),
                "path": name,
                "group": shard.group,
                "first_row": shard.first_row,
                "rows": shard.rows,
                **facts[shard.index]._asdict(),
            }
            for shard, name in zip(source.shards, names, strict=True)
        ],
    }


def _short_names(paths: list[str]) -> list[str]:
    """The paths without the folders that all of them are in: mostly file names."""
    folders = [path.split("/")[:-1] for path in paths]
    first, last = min(folders), max(folders)
    shared = 0
    while shared < len(first) and first[shared] == last[shared]:
        shared += 1
    return ["/".join(path.split("/")[shared:]) for path in paths]


def _to_json(manifest: dict[str, Any]) -> str:
    """Indented, but with one shard per line."""
    head = json.dumps({key: value for key, value in manifest.items() if key != "shards"}, indent=2)
    shards = ",\n".join("    " + json.dumps(shard) for shard in manifest["shards"])
    return f'{head[:-2]},\n  "shards": [\n{shards}\n  ]\n}}\n'
