"""The embedded sample: real English in FineWeb's schema, made from the installed packages without a download.

    python -m data.sample

The text is the prose of the docstrings of the Python standard library and of the packages that NormLab needs
anyway. A document is what is left of one source file once near-duplicates are dropped. About two in a hundred
files are the validation part. The same packages give the same files, byte for byte.
"""

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from tqdm import tqdm

from model.errors import UserError

from ..tokenizer import gpt2_encoding
from .docstrings import docstrings, plain_share, prose, shingles
from .folder import FILES, FORMAT, MANIFEST, SAMPLE_DIR, is_complete

ROWS_PER_GROUP = 64
DOCUMENT_TOKENS = 2_000
LONGEST_DOCUMENT_TOKENS = 4_000
SHORTEST_DOCUMENT_WORDS = 40
PASSAGE_WORDS = (30, 120)

# runtime dependencies only, so that development tools do not change the sample
PACKAGES = (  # noqa: SIM905
    "absl aiohttp anyio click datasets dateutil deepspeed evaluate filelock fsspec huggingface_hub jinja2 "
    "joblib jsonargparse lm_eval lxml more_itertools mpmath narwhals networkx nltk numpy packaging pandas "
    "psutil pyarrow pydantic requests rich sacrebleu scipy setuptools sklearn sympy tokenizers torch "
    "transformers urllib3 wandb"
).split()
_EXCLUDED_FOLDERS = frozenset({"test", "tests", "testing", "idle_test", "vendor", "_vendor", "site-packages"})
_SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("id", pa.string()),
        ("dump", pa.string()),
        ("url", pa.string()),
        ("date", pa.string()),
        ("file_path", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float64()),
        ("token_count", pa.int64()),
    ]
)
_SENTENCE = re.compile(r"\S.*?[.!?](?=\s+[A-Z]|\s*$)", re.DOTALL)
_LAST_WORD = re.compile(r" ([A-Za-z]{3,})[.!?]$")


@dataclass(frozen=True)
class SampleRow:
    """One row of the sample: document `part` of the source file `path`, such as `torch/nn/functional.py`."""

    path: str
    part: int
    text: str
    tokens: int


def build_sample(
    folder: Path = SAMPLE_DIR, roots: Mapping[str, Path] | None = None, *, progress: bool = False
) -> Path:
    """Builds the sample in `folder` unless it is there already; gives the folder.

    Several processes may call this at once: one builds, the others wait for it.

    Args:
        folder: Gets `train.parquet`, `validation.parquet`, `lastword.jsonl` and the manifest `sample.json`.
        roots: Folders of Python files by the name that documents carry; the installed packages when left out.
        progress: Whether to show a bar.

    Raises:
        UserError: `folder` cannot be written.
    """
    if is_complete(folder):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "sample.lock"):
            if not is_complete(folder):
                _build(folder, source_roots() if roots is None else roots, progress)
    except PermissionError as error:
        raise UserError(
            f"the embedded sample cannot be written to {folder} ({error.strerror}): "
            "set NORMLAB_SAMPLE_DIR to a folder that can be written"
        ) from error
    return folder


def source_roots() -> dict[str, Path]:
    """The folders of the standard library (`python`) and of the installed ones of `PACKAGES`, by name."""
    roots = {"python": Path(sysconfig.get_paths()["stdlib"])}
    for package in PACKAGES:
        spec = find_spec(package)
        if spec and spec.submodule_search_locations:
            roots[package] = Path(spec.submodule_search_locations[0])
    return roots


def near_duplicate(hashes: np.ndarray, seen: set[int]) -> bool:
    """Whether more than half of a text's shingles, (n,) uint64, are in `seen`, which gets all of them."""
    fresh = set(hashes.tolist()) - seen
    seen |= fresh
    return 2 * len(fresh) < len(hashes)


def is_validation(path: str) -> bool:
    """Whether a source file's documents are the validation part's: two files in a hundred are, by hash."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big") % 1000 < 20


def lastword_passages(texts: Iterable[str]) -> list[str]:
    """Passages in LAMBADA's form: the last word, which has three letters or more, occurs earlier in the
    passage.

    The target is what follows the last space; no full stop comes after it. Passages do not overlap.
    """
    passages = []
    shortest, longest = PASSAGE_WORDS
    for text in texts:
        context: list[str] = []
        for sentence in _SENTENCE.findall(" ".join(text.split())):
            context += sentence.split(" ")
            target = _LAST_WORD.search(" " + sentence)
            before = [word.strip(".,;:!?()\"'") for word in context[:-1]]
            if target and shortest <= len(before) <= longest and target[1] in before:
                passages.append(" ".join([*context[:-1], target[1]]))
                context = []
            elif len(context) > longest:
                context = []
    return passages


def _build(folder: Path, roots: Mapping[str, Path], progress: bool) -> None:
    """Writes the files beside `folder`'s own and moves them in, the manifest last: complete or not there."""
    unfinished = folder / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    documents = _documents(roots, progress)
    parts = {
        "train": [document for document in documents if not is_validation(document.path)],
        "validation": [document for document in documents if is_validation(document.path)],
    }
    for part, rows in parts.items():
        pq.write_table(_table(rows), unfinished / f"{part}.parquet", row_group_size=ROWS_PER_GROUP)
    passages = lastword_passages(document.text for document in parts["validation"])
    with open(unfinished / "lastword.jsonl", "w", encoding="utf-8") as lines:
        for passage in passages:
            lines.write(json.dumps({"text": passage}) + "\n")
    distributions = packages_distributions()
    manifest = {
        "format": FORMAT,
        "documents": {part: len(rows) for part, rows in parts.items()},
        "tokens": {part: sum(document.tokens for document in rows) for part, rows in parts.items()},
        "lastword_passages": len(passages),
        "packages": {
            "python": sysconfig.get_python_version(),
            **{name: version(distributions[name][0]) for name in roots if name in distributions},
        },
        "files": {
            name: {
                "bytes": (unfinished / name).stat().st_size,
                "sha256": hashlib.sha256((unfinished / name).read_bytes()).hexdigest(),
            }
            for name in FILES
        },
    }
    (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in (*FILES, MANIFEST):
        os.replace(unfinished / name, folder / name)
    unfinished.rmdir()


def _documents(roots: Mapping[str, Path], progress: bool) -> list[SampleRow]:
    """All documents, training files first, each part in the order of the files' names."""
    files = []
    for name, root in roots.items():
        for path in root.rglob("*.py"):
            relative = path.relative_to(root)
            if not _EXCLUDED_FOLDERS.intersection(relative.parts[:-1]):
                files.append((f"{name}/{relative.as_posix()}", path))
    # validation comes last so that what it shares with training is dropped from it, not from training
    files.sort(key=lambda file: (is_validation(file[0]), file[0]))
    seen: set[int] = set()
    texts_of_file: list[tuple[str, list[str]]] = []
    # forked workers need no importable main module, and they only parse text
    with ProcessPoolExecutor(
        max_workers=min(16, len(os.sched_getaffinity(0))), mp_context=multiprocessing.get_context("fork")
    ) as pool:
        prose_of_files = pool.map(_prose_of_file, [path for _, path in files], chunksize=16)
        progress_bar = tqdm(
            zip(files, prose_of_files, strict=True),
            "embedded sample",
            len(files),
            unit="file",
            disable=not progress,
            mininterval=0.2 if sys.stderr.isatty() else 5.0,
        )
        for (name, _), texts in progress_bar:
            fresh = [text for text, hashes in texts if not near_duplicate(hashes, seen)]
            if fresh:
                texts_of_file.append((name, fresh))
    documents = [
        (name, part, text)
        for name, texts in texts_of_file
        for part, text in enumerate(_join(texts))
        if len(text.split()) >= SHORTEST_DOCUMENT_WORDS
    ]
    tokens = gpt2_encoding().encode_ordinary_batch(
        [text for _, _, text in documents], num_threads=len(os.sched_getaffinity(0))
    )
    return [SampleRow(*document, len(ids)) for document, ids in zip(documents, tokens, strict=True)]


def _prose_of_file(path: Path) -> list[tuple[str, np.ndarray]]:
    """The prose of each docstring of a file, with its shingles."""
    texts = filter(None, map(prose, docstrings(path)))
    return [(text, shingles(text)) for text in texts]


def _join(texts: list[str]) -> list[str]:
    """Joins a file's docstrings to documents of about `DOCUMENT_TOKENS` tokens at most, by paragraph."""
    encode = gpt2_encoding().encode_ordinary
    pieces: list[str] = []
    left = 0  # tokens that the last piece may still get
    for text in texts:
        whole = len(text) < LONGEST_DOCUMENT_TOKENS or len(encode(text)) <= LONGEST_DOCUMENT_TOKENS
        for piece in [text] if whole else text.split("\n"):
            tokens = len(encode(piece))
            if tokens <= left:
                pieces[-1] += "\n\n" + piece
                left -= tokens
            else:
                pieces.append(piece)
                left = DOCUMENT_TOKENS - tokens
    return pieces


def _table(documents: list[SampleRow]) -> pa.Table:
    """Documents as FineWeb's nine columns; a docstring has no date of its own."""
    rows = [
        {
            "text": document.text,
            "id": f"<urn:docstrings:{document.path}:{document.part}>",
            "dump": "docstrings",
            "url": f"python:{document.path}",
            "date": "",
            "file_path": document.path,
            "language": "en",
            "language_score": round(plain_share(document.text), 4),
            "token_count": document.tokens,
        }
        for document in documents
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)
