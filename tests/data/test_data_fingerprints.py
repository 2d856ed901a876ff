"""What tells one source from another: what its files hold, however they are edited, moved or copied."""

import hashlib
import io
import json
import os
import shutil
from array import array
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import DataConfig, open_data, open_source, open_tokenizer
from data.files import hashes
from data.sources import Source, jsonl, network
from data.tokenize_source import tokenize_source
from model.errors import UserError
from tests.data.servers import Server, serving

TEXTS = [f"document {number:04}" for number in range(40)]
EDITED = [text.replace("0007", "9999") for text in TEXTS]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "JSONL_DIR", tmp_path / "converted")
    monkeypatch.setattr(hashes, "HASH_DIR", tmp_path / "hashes")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def parquet_of(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file, compression="none", use_dictionary=False)
    return file.getvalue()


def lines_of(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def csv_of(texts: list[str]) -> bytes:
    return "\n".join(["text", *texts, ""]).encode()


def tokens_of(texts: list[str]) -> bytes:
    return array("H", [token for text in texts for token in (*text.encode(), 256)]).tobytes()


FORMS = {"a.parquet": parquet_of, "a.jsonl": lines_of, "a.csv": csv_of, "a.bin": tokens_of}


def opened(source: Path | str, **options: object) -> Source:
    config = DataConfig(source=str(source), tokenizer="bytes", **options)  # type: ignore[arg-type]
    return open_source(config, open_tokenizer("bytes"))


def texts_of(source: Source) -> list[str]:
    tokenizer = open_tokenizer("bytes")
    documents = [one for shard in source.shards for one in source.read(shard).kept]
    return [one if isinstance(one, str) else tokenizer.decode(one[:-1]) for one in documents]


def edit(path: Path, content: bytes) -> None:
    """In place, to the same size; every date that a program can set is set back."""
    before = path.stat()
    assert len(content) == before.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("name", FORMS)
def test_an_edit_that_keeps_size_and_date_is_seen(tmp_path: Path, name: str) -> None:
    path = tmp_path / "in" / name
    path.parent.mkdir()
    path.write_bytes(FORMS[name](TEXTS))
    first = opened(path)
    fingerprint = first.fingerprint
    assert texts_of(first) == TEXTS and opened(path).fingerprint == fingerprint
    edit(path, FORMS[name](EDITED))
    second = opened(path)
    assert texts_of(second) == EDITED and second.fingerprint != fingerprint
    assert second.older_fingerprint == first.older_fingerprint, "which is why names and sizes are not enough"
    edit(path, FORMS[name](TEXTS))
    assert opened(path).fingerprint == fingerprint


def test_a_fingerprint_is_of_column_names_hashes_and_shards(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.parquet", "b.parquet"):
        pq.write_table(pa.table({"text": TEXTS[:3]}), tmp_path / "in" / name)
    sha256 = hashlib.sha256((tmp_path / "in" / "a.parquet").read_bytes()).hexdigest()
    files = [[name, f"sha256:{sha256}"] for name in ("a.parquet", "b.parquet")]
    shards = [[name, 0, row, 1] for name in ("a.parquet", "b.parquet") for row in range(3)]
    content = json.dumps(["text", files, shards, 3])
    assert opened(tmp_path / "in").fingerprint == f"content:{hashlib.sha256(content.encode()).hexdigest()}"


def test_an_edited_source_does_not_complete_its_token_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_of(TEXTS))
    tokenizer = open_tokenizer("bytes")

    def tokenize() -> None:
        config = DataConfig(source=str(path), tokenizer="bytes")
        tokenize_source(open_source(config, tokenizer), config, tokenizer, str(tmp_path / "out"), workers=1)

    tokenize()
    assert opened(tmp_path / "out").fingerprint == opened(path).fingerprint
    edit(path, parquet_of(EDITED))
    with pytest.raises(UserError, match=r"^--out: .* has changed or is not what is asked for now"):
        tokenize()
    assert texts_of(opened(tmp_path / "out")) == TEXTS


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_an_edited_source_is_not_read_from_the_cache(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FORMS[name](TEXTS))
    config = DataConfig(source=str(path), tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    assert texts_of(open_data(config)[0].source) == TEXTS
    edit(path, FORMS[name](EDITED))
    assert texts_of(open_data(config)[0].source) == EDITED
    moved = shutil.move(path, tmp_path / "moved")
    os.makedirs(path.parent / "b")
    shutil.move(moved, path.parent / "b" / name)
    folders = set((tmp_path / "cache").iterdir())
    open_data(DataConfig(source=str(path.parent / "b" / name), tokenizer="bytes", cache_dir=config.cache_dir))
    assert set((tmp_path / "cache").iterdir()) == folders, "a file that moved is the same"


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", -1.0)  # however new a file is
    paths = [tmp_path / f"{number}" for number in range(20)]
    for path in paths:
        path.write_bytes(path.name.encode() * 1000)
    expected = {str(path): f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in paths}
    read: list[list[str]] = []
    all_read = hashes._read

    def counted(missing: list[str]) -> dict[str, str]:
        read.append(list(missing))
        return all_read(missing)

    monkeypatch.setattr(hashes, "_read", counted)
    names = list(map(str, paths))
    assert hashes.content_hashes(names) == expected
    assert hashes.content_hashes(names) == expected
    assert read == [names]
    edit(paths[3], b"x" * paths[3].stat().st_size)
    assert hashes.content_hashes(names)[names[3]] != expected[names[3]]
    assert read == [names, [names[3]]]
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", 60.0)
    edit(paths[4], b"y" * paths[4].stat().st_size)
    for _ in range(2):  # it might be edited again within one tick of the clock
        hashes.content_hashes(names)
    assert read[2:] == [[names[4]], [names[4]]]


def test_without_a_place_to_remember_files_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(hashes, "HASH_DIR", tmp_path / "file" / "below")
    expected = {str(tmp_path / "file"): f"sha256:{hashlib.sha256(b'x').hexdigest()}"}
    assert hashes.content_hashes([str(tmp_path / "file")]) == expected
    with pytest.raises(UserError, match=r"^data\.source: .*gone cannot be read \(No such file"):
        hashes.content_hashes([str(tmp_path / "gone")])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(network, "RETRY_SECONDS", (0,))
    with serving() as server:
        yield server


def test_a_server_tells_contents_apart_by_its_tags_or_dates(server: Server) -> None:
    url = f"{server.url}/a.parquet"
    server.files["/a.parquet"] = parquet_of(TEXTS)
    found = {}
    for name, headers, content in (
        ("tag", {"ETag": '"1"'}, TEXTS),
        ("same", {"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, TEXTS),
        ("other tag", {"ETag": '"2"'}, EDITED),
        ("date", {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, TEXTS),
        ("other date", {"Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"}, EDITED),
        ("nothing", {}, TEXTS),
    ):
        server.versions = headers
        server.files["/a.parquet"] = parquet_of(content)
        source = opened(url)
        found[name] = source.fingerprint
        is_weak = "tag" not in name and name != "same"
        assert any("gives no checksums" in note for note in source.notes) == is_weak, name
    assert found.pop("same") == found["tag"]
    assert len(set(found.values())) == 5
