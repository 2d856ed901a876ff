"""Files as users have them: suffixes, columns with text in another form, and broken ones of any format."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import DataConfig, Source, open_source, open_tokenizer
from model.errors import UserError

TEXTS = [f"Text {number} über alles." for number in range(50)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("data.sources.jsonl.JSONL_DIR", tmp_path / "jsonl")


def opened(where: Path | str, **options: str) -> Source:
    return open_source(DataConfig(source=str(where), **options), open_tokenizer("gpt2"))  # type: ignore[arg-type]


def read(source: Source) -> list[object]:
    return [document for shard in source.shards for document in source.read(shard).kept]


def sentence(where: Path | str, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        read(opened(where, **options))
    message = str(caught.value)
    assert "\n" not in message and not message.endswith(".")
    return message


def lines() -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def write(path: Path, column: pa.Array, group: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": column}), path, row_group_size=group)


@pytest.mark.parametrize("name", ["a.PARQUET", "a.pq", "a.Pq"])
def test_parquet_by_other_suffixes_is_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / "corpus" / name, pa.array(TEXTS))
    for where in (tmp_path / "corpus", tmp_path / "corpus" / name, f"{tmp_path}/corpus/a*"):
        assert read(opened(where)) == TEXTS
    assert read(opened(tmp_path / "corpus", files="*")) == TEXTS


@pytest.mark.parametrize(
    "name", ["a.jsonlines", "a.ndjson", "a.json", "a.JSONL", "a.jsonl.GZ", "a.ndjson.gz"]
)
def test_json_lines_by_other_suffixes_are_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / name).write_bytes(gzip.compress(lines()) if name.lower().endswith("gz") else lines())
    for where in (folder, folder / name, f"{folder}/a*"):
        assert read(opened(where)) == TEXTS


def test_a_file_url_is_the_path_that_it_names(tmp_path: Path) -> None:
    write(tmp_path / "a b[1]" / "train.parquet", pa.array(TEXTS))
    write(tmp_path / "a b[1]" / "val.parquet", pa.array(["Held out."]))
    for url in (f"file://{tmp_path}/a b[1]", (tmp_path / "a b[1]").as_uri(), f"FILE://{tmp_path}/a b[1]/t*"):
        assert read(opened(url)) == TEXTS
    assert "does not exist" in sentence(f"file://{tmp_path}/nothing.parquet")
    np.array([5, 50256], np.uint16).tofile(tmp_path / "t.bin")
    assert opened(f"file://{tmp_path}/t.bin").holds_tokens


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
@pytest.mark.parametrize("group", [20, 1_000])
def test_text_in_another_form_is_read(tmp_path: Path, kind: pa.DataType, group: int) -> None:
    texts = TEXTS * 50
    column = (
        pa.array(texts).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(texts).cast(kind)
    )
    write(tmp_path / "a.parquet", column, group)
    assert pq.read_schema(tmp_path / "a.parquet").field("text").type == kind
    assert read(opened(tmp_path)) == texts
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file:
        table = pa.table({"text": column})
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    if kind != pa.string_view():  # which `datasets` does not know
        assert read(opened(tmp_path / "a.arrow")) == texts


def test_bytes_that_are_no_text_are_bad_documents(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.array([b"one", b"\xff\xfe", None, b"", "zwölf".encode()], pa.binary()))
    source = opened(tmp_path)
    bad = sum((source.read(shard).bad for shard in source.shards), Counter())
    assert read(source) == ["one", "zwölf"] and bad == {"not_utf8": 1, "empty": 2}


def test_a_file_of_nulls_beside_good_ones_has_only_empty_documents(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.array(TEXTS))
    write(tmp_path / "b.parquet", pa.nulls(7))
    source = opened(tmp_path)
    assert read(source) == TEXTS
    assert sum(source.read(shard).bad["empty"] for shard in source.shards) == 7


def test_columns_that_are_there_twice_are_a_sentence(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "a.parquet")
    assert "as text is there 2 times" in sentence(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text,text\none,two\n")
    assert "a.csv has two columns of that name" in sentence(tmp_path / "a.csv")
    ids = pa.Table.from_arrays([pa.array(TEXTS)] * 3, names=["text", "id", "id"])
    pq.write_table(ids, tmp_path / "ids.parquet")
    source = opened(tmp_path / "ids.parquet")
    assert read(source) == TEXTS and source.ids(source.shards[0]) is None


@pytest.mark.parametrize("suffix", ["tar", "arrow", "h5", "csv", "xml", "zip", "lance"])
def test_a_broken_file_of_any_format_is_a_sentence(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"\x00\xff no such format " * 50)
    assert sentence(tmp_path / f"a.{suffix}").startswith(("data.source: ", "data.text_column is 'text', but"))
    assert sentence(tmp_path).startswith(("data.source: ", "data.text_column is 'text', but"))


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        (
            '{"token_shards_format": 1, "shards": [], "max_document_bytes": 3, "bad": {}}',
            "it has no 'tokenizer'",
        ),
        ('{"token_shards_format": 1, "shards": [], "max_document_bytes": 3, "tokenizer": null}', "NoneType"),
        ('{"token_shards_format": 1, "shards": 7, "tokenizer": "gpt2", "max_document_bytes": 3}', "str"),
        ('{"token_shar', "it is not JSON"),
    ],
)
def test_a_broken_manifest_is_a_sentence(tmp_path: Path, manifest: str, why: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    np.arange(100).astype(np.uint16).tofile(tmp_path / "shard_00000000.bin")
    message = sentence(tmp_path)
    assert (
        f"{tmp_path}/manifest.json is not as scripts/tokenize_data.py wrote it" in message and why in message
    )


def test_compressed_parquet_is_not_taken_for_parquet(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.array(TEXTS))
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert read(opened(tmp_path)) == TEXTS
    assert "a.parquet.gz is no .parquet" in sentence(tmp_path / "a.parquet.gz")
    assert "must end in" in sentence("https://host/a.parquet.gz")
