"""JSON lines: every line is a document or says why not."""

import bz2
import gzip
import json
import lzma
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from data.files import json_rows
from data.sources import Documents, jsonl
from model.errors import UserError
from tests.data.json_lines import TEXTS, bad, documents, lines, opened

pytestmark = pytest.mark.usefixtures("large_shards")

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
    with pytest.raises(UserError, match=rf"{path} (is damaged|ends in the middle).*: mend the file, or set"):
        opened(path, on_bad_document="stop")


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_what_a_damaged_file_has_lost_is_said_before_training(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    texts = [f"{hash(text)} {text}" for text in TEXTS * 2]  # which do not compress to nothing
    content = COMPRESSIONS[suffix](lines(texts))
    path.write_bytes(content[: len(content) * 7 // 10])
    source = opened(path)
    kept = documents(source)
    assert kept == texts[: len(kept)]
    (note,) = source.notes
    what = "its compressed content" if suffix else "a line"
    assert note == (
        f"data.source: {path} ends in the middle of {what}, as a file does that was not copied whole: "
        f"{len(kept):,} documents were read from it, and all that followed are lost."
    )
    with pytest.raises(UserError, match=r"are lost: mend the file, or set data\.on_bad_document to skip$"):
        opened(path, on_bad_document="stop")
    path.write_bytes(content)
    assert opened(path).notes == [] and documents(opened(path, on_bad_document="stop")) == texts


def test_the_documents_behind_damage_are_estimated_by_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.bz2"
    texts = [f"{number} {hash(str(number))}" for number in range(100_000)]
    content = bytearray(bz2.compress(lines(texts), 1))
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    path.write_bytes(content)
    source = opened(path)
    kept = len(documents(source))
    (note,) = source.notes
    found = re.search(r"([\d,]+) documents were read before, and about ([\d,]+) behind it are lost", note)
    assert found, note
    read, lost = (int(number.replace(",", "")) for number in found.groups())
    assert read == kept and abs(read + lost - len(texts)) < len(texts) // 20


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
    monkeypatch.setattr(json_rows, "LONGEST_LINE_BYTES", 200)
    texts = ["é" * length for length in (0, 1, 2, 5, 50, 93, 400, 3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    source = opened(path)
    assert documents(source) == texts[1:6] + texts[7:]
    assert bad(source) == {"empty": 1, "too_long": 1}
