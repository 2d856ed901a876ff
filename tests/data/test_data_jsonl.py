"""JSON lines: every line is a document or says why not, is converted once, and leaves no trace in a run."""

import bz2
import gzip
import json
import lzma
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard

from data import DataConfig
from data.sources import Documents, ParquetSource, jsonl
from data.sources.jsonl import JsonlSource
from model.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"Text {row} é\u2028\U0001f600." for row in range(2300)]
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_content_size=False).compress,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jsonl, "JSONL_DIR", tmp_path / "cache")
    return tmp_path / "cache"


def lines(texts: list[str], **more: object) -> bytes:
    return "".join(json.dumps({"text": text, **more}) + "\n" for text in texts).encode()


def opened(*paths: Path, **options: object) -> JsonlSource:
    config = DataConfig(source=str(paths[0]), **options)  # type: ignore[arg-type]
    return JsonlSource(config, [str(path) for path in paths])


def documents(source: ParquetSource) -> list[object]:
    return [document for shard in source.shards for document in source.read(shard).kept]


def bad(source: ParquetSource) -> Counter[str]:
    return sum((source.read(shard).bad for shard in source.shards), Counter())


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_every_compression_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](lines(TEXTS)))
    source = opened(path)
    assert documents(source) == TEXTS and not bad(source)
    assert [(shard.path, shard.first_row, shard.rows) for shard in source.shards] == [
        (str(path), 0, 1000),
        (str(path), 0, 1000),
        (str(path), 0, 300),
    ]
    assert source.file_sizes == {str(path): path.stat().st_size}
    assert source.ids(source.shards[0]) is None


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESSIONS if suffix])
def test_compressed_files_that_follow_one_another_are_read_as_one(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESSIONS[suffix]
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(compress(lines(TEXTS[:7])) + compress(lines(TEXTS[7:50])) + compress(b""))
    assert documents(opened(path)) == TEXTS[:50]


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESSIONS if suffix])
@pytest.mark.parametrize("damage", ["truncated", "rotten", "nothing"])
def test_a_damaged_file_keeps_the_lines_before_the_damage(
    tmp_path: Path, suffix: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.sources.content.PIECE_BYTES", 100)
    content = b"".join(COMPRESSIONS[suffix](lines(TEXTS[row : row + 100])) for row in range(0, 2300, 100))
    path = tmp_path / f"rows.jsonl{suffix}"
    middle = len(content) // 2
    path.write_bytes(
        {
            "truncated": content[:middle],
            "rotten": content[:middle] + b"\xa5" * 600 + content[middle + 600 :],
            "nothing": b"no compression",
        }[damage]
    )
    source = opened(path)
    kept = documents(source)
    assert len(kept) == 0 if damage == "nothing" else 1000 < len(kept) < 1300
    assert kept[:1100] == TEXTS[: min(len(kept), 1100)]  # gzip sees rot at the end of a part only
    assert bad(source)["unreadable"] == 1
    with pytest.raises(UserError, match=rf"line 1?\d* of {path} (cannot be read: its part of|is not)"):
        documents(opened(path, on_bad_document="stop"))


def test_a_line_that_is_no_document_is_a_row_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"  # a byte order mark
        b'{"text": "one", "id": 1}\r\n'
        b"\n \t \r\n"
        b'{"text": nul\n'
        b'["text"]\n"text"\n7\n'
        b'{"page": "no text"}\n'
        b'{"text": 5}\n{"text": ["five"]}\n'
        b'{"text": null, "id": "n"}\n{"text": ""}\n'
        b'{"text": "\xff"}\n'
        b'{"text": "half \\ud800 pair", "id": "h"}\n'
        b'{"text": "whole \\ud83d\\ude00 pair", "id": "\\ud800"}\n' + b'{"text": ' + b"[" * 100_000 + b"\n"
        b'{"text": ' + b"9" * 5000 + b"}\n"
        b'{"text": "' + b"long" * 30 + b'"}\n'
        b'{"text": "last", "id": "z", "more": {"a": NaN}}'
    )
    source = opened(path, max_document_bytes=100)
    assert source.shards[0].rows == 17
    assert source.read(source.shards[0]) == Documents(
        ["one", "whole \U0001f600 pair", "last"], Counter(not_json=9, not_utf8=2, empty=2, too_long=1)
    )
    assert source.ids(source.shards[0]) == ["1", "n", "h", "z"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"no json", "is not a JSON object with the text column"),
        (b'{"text": "\xff"}', "is not valid UTF-8"),
        (b'{"text": "\\udc00"}', "is not valid UTF-8"),
    ],
)
def test_stop_names_the_file_and_the_line(tmp_path: Path, line: bytes, what: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(TEXTS[:1500]) + b"\n\n" + line + b"\n" + lines(TEXTS[1500:]))
    source = opened(path, on_bad_document="stop")
    assert source.read(source.shards[0]).kept == TEXTS[:1000]
    with pytest.raises(UserError) as caught:
        source.read(source.shards[1])
    assert str(caught.value) == (
        f"data.source: line 1503 of {path} {what}: mend it, or set data.on_bad_document to skip"
    )


def error(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        opened(path, **options)
    message = str(caught.value)
    assert "\n" not in message and not message.endswith(".")
    assert not list(jsonl.JSONL_DIR.glob("*.parquet")) and not list(jsonl.JSONL_DIR.glob(".*.partial"))
    return message


def test_files_that_are_not_json_lines_with_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"page": "one", "texts": 1}\n{"page": "two"}\n')
    assert error(path) == (
        f"data.text_column is 'text', but {path} has the columns page, texts (did you mean 'texts'?)"
    )
    assert error(path, text_column="texts") == (
        f"data.text_column is 'texts', but that column of {path} holds int, not text"
    )
    path.write_text('\n [{"text": "one"},\n{"text": "two"}]\n')
    assert error(path).startswith(
        f"data.source: {path} holds a JSON array: write one object per line, as `jq "
    )
    path.write_text('{\n  "text": "one"\n}\n')
    assert error(path) == f"data.source: {path} does not hold one JSON object per line: it begins with '{{'"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    assert "does not hold one JSON object per line" in error(path)
    path.write_text("\n\n")
    with pytest.raises(UserError, match=r"holds no documents$"):
        opened(path)


@pytest.mark.parametrize("column", ["id", "problem", "line", "text.with.dots"])
def test_a_text_column_may_have_any_name(tmp_path: Path, column: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({column: "one"}) + "\n")
    source = opened(tmp_path / "rows.jsonl", text_column=column)
    assert documents(source) == ["one"]


def test_a_line_of_any_length_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.content.PIECE_BYTES", 3)
    monkeypatch.setattr(jsonl, "LONGEST_LINE_BYTES", 200)
    texts = ["é" * length for length in (0, 1, 2, 5, 50, 93, 400, 3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    source = opened(path)
    assert documents(source) == texts[1:6] + texts[7:]
    assert bad(source) == {"empty": 1, "too_long": 1}


def test_long_texts_make_smaller_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "LARGEST_GROUP_CHARACTERS", 5000)
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


def test_a_disk_without_room_is_a_sentence(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines([f"{text} {hash(text)}" for text in TEXTS * 5]))
    environment = {**os.environ, "NORMLAB_JSONL_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith(f"data.source: JSON lines cannot be converted in {cache} ("), done.stderr
    assert "File too large" in done.stdout
    assert done.stdout.endswith("free some space there, or set NORMLAB_JSONL_DIR to another folder.\n")
    assert not list(cache.glob("*.parquet")) and not list(cache.glob(".*.partial"))
    monkeypatch.setattr(jsonl, "JSONL_DIR", path / "below a file")
    with pytest.raises(UserError, match=r"cannot be converted in .*below a file"):
        opened(path)


def test_an_interrupted_conversion_leaves_nothing_and_starts_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(TEXTS))
    parsed = jsonl._parsed

    def interrupted(line: bytes) -> object:
        if b"Text 1500 " in line:
            raise KeyboardInterrupt
        return parsed(line)

    monkeypatch.setattr(jsonl, "_parsed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(path)
    assert [file.name for file in cache.iterdir()] == ["lock"]
    monkeypatch.setattr(jsonl, "_parsed", parsed)
    assert documents(opened(path)) == TEXTS


def test_a_killed_conversion_starts_again(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(TEXTS))
    cache.mkdir()
    job = jsonl._job(str(path), {}, "text")
    job.target.with_name(f".{job.target.name}.7.partial").write_bytes(b"PAR1 half of it")
    assert documents(opened(path)) == TEXTS
    assert sorted(file.suffix for file in cache.iterdir()) == ["", ".parquet"]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines(["some text " * 300] * 20_000), 1))  # 60 MB
    job = jsonl._job(str(path), {}, "text")
    jsonl.JSONL_DIR.mkdir()
    tracemalloc.start()
    jsonl._convert(job)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pq.read_metadata(job.target).num_rows == 20_000
    assert most < 30_000_000
