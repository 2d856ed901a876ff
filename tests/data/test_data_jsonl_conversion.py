"""JSON lines are converted once, whoever asks and whatever interrupts it, and leave no trace in a run."""

import gzip
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data import DataConfig
from data.files import json_rows
from data.files.hashes import content_hashes
from data.sources import jsonl
from model.errors import UserError
from tests.data.json_lines import TEXTS, documents, lines, opened

ROOT = Path(__file__).resolve().parents[2]


def job_of(path: Path) -> jsonl._Job:
    (content_hash,) = content_hashes([str(path)]).values()
    return jsonl._job(str(path), {}, DataConfig(), content_hash)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jsonl, "JSONL_DIR", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.usefixtures("large_shards")
def test_long_texts_make_smaller_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "SHARD_TEXT_BYTES", 5000)
    (tmp_path / "rows.jsonl").write_bytes(lines(["x" * 1500] * 9))
    assert [shard.rows for shard in opened(tmp_path / "rows.jsonl").shards] == [4, 4, 1]


def test_a_file_is_converted_once_until_it_changes(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(TEXTS[:10], page="other"))
    first = opened(path)
    (converted,) = cache.glob("*.parquet")
    made = converted.stat().st_mtime_ns
    assert opened(path).fingerprint == first.fingerprint and converted.stat().st_mtime_ns == made
    assert documents(opened(path, text_column="page")) == ["other"] * 10
    path.write_bytes(lines(TEXTS[1:11], page="other"))
    assert documents(opened(path)) == TEXTS[1:11]
    assert len(list(cache.glob("*.parquet"))) == 3 and not list(cache.glob(".*.partial"))


def test_the_fingerprint_depends_on_neither_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(TEXTS))
    here = opened(tmp_path / "rows.jsonl").fingerprint
    monkeypatch.setattr(jsonl, "JSONL_DIR", tmp_path / "another cache")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "elsewhere")
    assert opened(tmp_path / "elsewhere" / "rows.jsonl").fingerprint == here
    os.truncate(tmp_path / "elsewhere" / "rows.jsonl", 5000)
    assert opened(tmp_path / "elsewhere" / "rows.jsonl").fingerprint != here


def test_many_files_are_converted_side_by_side(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:02}.jsonl" for number in range(12)]
    for number, path in enumerate(paths):
        path.write_bytes(lines([f"{number} {text}" for text in TEXTS[:150]]))
    assert documents(opened(*paths)) == [f"{number} {text}" for number in range(12) for text in TEXTS[:150]]
    paths[5].write_text("no json")
    with pytest.raises(UserError, match=r"05\.jsonl does not hold one JSON object per line"):
        opened(*paths)


OPEN_TWO = """
import sys, os
from data.files import json_rows
from data.files.hashes import content_hashes
from data.sources import jsonl
from data import DataConfig
convert = jsonl._convert
def counted(job, bar=False):
    with open("converted", "a") as log: log.write(job.path + "\\n")
    convert(job, bar)
jsonl._convert = counted
source = jsonl.JsonlSource(DataConfig(source="all"), sys.argv[1:])
print(source.fingerprint, sum(len(source.read(shard).kept) for shard in source.shards))
"""


def test_ranks_that_start_together_convert_each_file_once(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_bytes(lines(TEXTS * 5))
    environment = {**os.environ, "NORMLAB_JSONL_DIR": str(tmp_path / "shared"), "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_TWO, *map(str, paths)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = {rank.communicate(timeout=120)[0] for rank in ranks}
    assert len(said) == 1 and said.pop().endswith(" 23000\n")
    assert sorted((tmp_path / "converted").read_text().split()) == list(map(str, paths))


FILL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from data import DataConfig
from data.sources.jsonl import JsonlSource
try:
    JsonlSource(DataConfig(source="rows"), sys.argv[1:])
except ValueError as error:
    print(error)
"""


def test_a_full_disk_is_a_sentence(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines([f"{text} {hash(text)}" for text in TEXTS * 5]))
    environment = {**os.environ, "NORMLAB_JSONL_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith(f"data.source: JSON lines cannot be converted in {cache} ("), done.stderr
    assert "File too large" in done.stdout
    assert done.stdout.endswith("free some space there, or set NORMLAB_JSONL_DIR to another folder\n")
    assert not list(cache.glob("*.parquet")) and not list(cache.glob(".*.partial"))
    monkeypatch.setattr(jsonl, "JSONL_DIR", path / "below a file")
    with pytest.raises(UserError, match=r"cannot be converted in .*below a file"):
        opened(path)


def test_an_interrupted_conversion_leaves_nothing_and_starts_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(TEXTS))
    parsed = json_rows._parsed

    def interrupted(line: bytes) -> object:
        if b"Text 1500 " in line:
            raise KeyboardInterrupt
        return parsed(line)

    monkeypatch.setattr(json_rows, "_parsed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(path)
    assert [file.name for file in cache.iterdir()] == ["lock"]
    monkeypatch.setattr(json_rows, "_parsed", parsed)
    assert documents(opened(path)) == TEXTS


def test_a_killed_conversion_starts_again(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(TEXTS))
    cache.mkdir()
    job = job_of(path)
    job.target.with_name(f".{job.target.name}.7.partial").write_bytes(b"PAR1 half of it")
    assert documents(opened(path)) == TEXTS
    assert sorted(file.suffix for file in cache.iterdir()) == ["", ".parquet"]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines(["some text " * 300] * 20_000), 1))  # 60 MB
    job = job_of(path)
    (tmp_path / "small.jsonl").write_bytes(lines(["one"]))
    opened(tmp_path / "small.jsonl")  # so that no library is loaded while memory is measured
    tracemalloc.start()
    jsonl._convert(job)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pq.read_metadata(job.target).num_rows == 20_000
    assert most < 30_000_000
