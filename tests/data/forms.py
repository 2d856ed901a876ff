"""The same texts in every form that a source may have."""

import csv
import gzip
import json
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

Write = Callable[[Path, list[str]], str]


def parquet(folder: Path, texts: list[str], group: int = 1_000, **options: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), folder / "a.parquet", row_group_size=group, **options)
    return str(folder / "a.parquet")


def parquet_folder(folder: Path, texts: list[str], pattern: str = "") -> str:
    half = len(texts) // 2
    parquet(folder / "0", texts[:half], 64, compression="zstd")
    parquet(folder / "1", texts[half:], 10**6, compression="none")
    return str(folder) + pattern


def lines(texts: list[str], ascii_: bool = True) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=ascii_) + "\n" for text in texts).encode()


def jsonl(folder: Path, texts: list[str], suffix: str, compress: Callable[[bytes], bytes]) -> str:
    half = len(texts) // 2
    (folder / f"0.jsonl{suffix}").write_bytes(compress(lines(texts[:half])))
    (folder / f"1.jsonl{suffix}").write_bytes(compress(lines(texts[half:], ascii_=False)))
    return str(folder / f"*.jsonl{suffix}")


def csv_file(folder: Path, texts: list[str]) -> str:
    with open(folder / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    return str(folder)


def arrow_file(folder: Path, texts: list[str]) -> str:
    table = pa.table({"text": texts})
    with pa.ipc.new_stream(str(folder / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return str(folder)


FORMS: dict[str, Write] = {
    "parquet": parquet,
    "parquet of small row groups": partial(parquet, group=7),
    "parquet of one row group": partial(parquet, group=10**6),
    "folder": parquet_folder,
    "glob": partial(parquet_folder, pattern="/*/?.parquet"),
    "jsonl": partial(jsonl, suffix="", compress=bytes),
    "jsonl.gz": partial(jsonl, suffix=".gz", compress=gzip.compress),
    "jsonl.zst": partial(jsonl, suffix=".zst", compress=zstandard.compress),
    "jsonl.xz": partial(jsonl, suffix=".xz", compress=partial(lzma.compress, preset=0)),
    "csv": csv_file,
    "arrow": arrow_file,
}
