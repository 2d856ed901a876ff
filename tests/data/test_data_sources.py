"""Sources: the same documents from every format, and one clear sentence for every mistake."""

import gzip
import json
import lzma
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from data import DataConfig, Source, open_tokenizer
from data import open_source as open_with_tokenizer
from data.sources import Document
from model.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"
ROWS: list[str | None] = [
    None if row % 50 == 7 else "" if row % 50 == 8 else f"Text {row}." for row in range(2300)
]
TEXTS = [text for text in ROWS if text]


def write_parquet(path: Path, rows: list[str | None], **columns: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(rows, pa.string()), **columns}), path, row_group_size=300)


def lines(rows: list[str | None]) -> bytes:
    return "".join(json.dumps({"text": row, "score": 1}) + "\n" for row in rows).encode()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The same rows as parquet in two files, and as JSON lines in three forms."""
    write_parquet(tmp_path / "parquet" / "000.parquet", ROWS[:1000])
    write_parquet(tmp_path / "parquet" / "001.parquet", ROWS[1000:])
    for name in ("plain", "gz", "zst", "xz"):
        (tmp_path / name).mkdir()
    (tmp_path / "plain" / "rows.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "gz" / "rows.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    (tmp_path / "xz" / "rows.jsonl.xz").write_bytes(lzma.compress(lines(ROWS)))
    with pa.CompressedOutputStream(str(tmp_path / "zst" / "rows.jsonl.zst"), "zstd") as out:
        out.write(lines(ROWS))
    return tmp_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("data.sources.jsonl.JSONL_DIR", tmp_path / "jsonl")


def open_source(config: DataConfig) -> Source:
    return open_with_tokenizer(config, open_tokenizer("gpt2"))


def read_all(source: Source) -> list[Document]:
    return [text for shard in source.shards for text in source.read(shard).kept]


@pytest.mark.parametrize(
    "where", ["parquet", "parquet/*.parquet", "parquet/00[01].parquet", "plain", "gz", "zst", "xz"]
)
def test_every_form_of_a_source_gives_the_same_documents(files: Path, where: str) -> None:
    source = open_source(DataConfig(source=str(files / where)))
    assert read_all(source) == TEXTS
    assert [shard.index for shard in source.shards] == list(range(len(source.shards)))
    assert sum(shard.rows for shard in source.shards) == len(ROWS)


@pytest.mark.usefixtures("large_shards")
@pytest.mark.parametrize("where", ["plain/rows.jsonl", "gz/rows.jsonl.gz", "plain/*.jsonl"])
def test_json_lines_are_cut_into_shards_of_a_thousand_rows(files: Path, where: str) -> None:
    source = open_source(DataConfig(source=str(files / where)))
    assert [shard.rows for shard in source.shards] == [1000, 1000, 300]
    assert source.read(source.shards[2]).kept == [text for text in ROWS[2000:] if text]


@pytest.mark.usefixtures("large_shards")
def test_a_shard_is_a_row_group(files: Path) -> None:
    source = open_source(DataConfig(source=str(files / "parquet")))
    assert [shard.rows for shard in source.shards] == [300, 300, 300, 100, 300, 300, 300, 300, 100]
    assert source.read(source.shards[4]).kept == [text for text in ROWS[1000:1300] if text]


def test_a_relative_path_and_a_name_with_brackets_work(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(files / "parquet" / "000.parquet", files / "part[1].parquet")
    monkeypatch.chdir(files)
    for where in ("part[1].parquet", "./parquet/000.parquet", "parquet/000*"):
        assert read_all(open_source(DataConfig(source=where))) == [text for text in ROWS[:1000] if text]


def test_a_folder_of_splits_and_subsets_is_told_apart(tmp_path: Path) -> None:
    for part in ("small", "large"):
        write_parquet(tmp_path / part / "train-0.parquet", [f"{part} train"])
        write_parquet(tmp_path / part / "test-0.parquet", [f"{part} test"])
    configs = [{"config_name": part, "data_dir": part} for part in ("small", "large")]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    for part in ("small", "large"):
        for split in ("train", "test"):
            config = DataConfig(source=str(tmp_path), subset=part, split=split)
            assert read_all(open_source(config)) == [f"{part} {split}"]
    assert error(source=str(tmp_path), subset="smal") == (
        f"data.subset is 'smal', but {tmp_path} has small, large (did you mean 'small'?)"
    )
    assert error(source=str(tmp_path)).startswith("data.subset is not given, but")


def test_another_text_column_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["one"], page=["two"])
    assert read_all(open_source(DataConfig(source=str(tmp_path), text_column="page"))) == ["two"]


def test_that_lines_of_text_files_are_documents_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One line.\nAnother line.\n")
    source = open_source(DataConfig(source=str(tmp_path / "a.txt")))
    assert read_all(source) == ["One line.", "Another line."]
    assert source.notes == [
        "data.source: each line of a text file is a document: longer ones need JSON lines."
    ]


def test_files_of_a_folder_that_are_not_read_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("wiki", "books", "train-math"):
        write_parquet(folder / f"{name}.parquet", [name])
    (folder / "notes.txt").write_text("no document")
    source = open_source(DataConfig(source=str(folder)))
    assert read_all(source) == ["books", "train-math", "wiki"] and source.notes == []
    (folder / "train-math.parquet").rename(folder / "train.parquet")
    source = open_source(DataConfig(source=str(folder)))
    assert read_all(source) == ["train-math"]
    (note,) = source.notes
    assert note.startswith(
        f"data.source: not every file of {folder} is read (2 are not, such as books.parquet): a folder is"
    )
    (folder / "train.parquet").rename(folder / "math.parquet")
    (folder / "rows.jsonl").write_bytes(lines(["one"]))
    assert "(1 are not, such as rows.jsonl)" in open_source(DataConfig(source=str(folder))).notes[0]


def test_the_fingerprint_follows_content_not_place(files: Path, tmp_path: Path) -> None:
    here = open_source(DataConfig(source=str(files / "parquet"))).fingerprint
    shutil.copytree(files / "parquet", tmp_path / "elsewhere")
    assert open_source(DataConfig(source=str(tmp_path / "elsewhere"))).fingerprint == here
    write_parquet(tmp_path / "elsewhere" / "001.parquet", ROWS[1000:1900])
    assert open_source(DataConfig(source=str(tmp_path / "elsewhere"))).fingerprint != here


def error(**options: str) -> str:
    with pytest.raises((UserError, ConnectionError)) as caught:
        open_source(DataConfig(**options))
    message = str(caught.value)
    assert "\n" not in message and not message.endswith(".")
    return message


def test_paths_that_do_not_exist_are_named_with_the_nearest_name(files: Path) -> None:
    assert "000.parque does not exist (did you mean '000.parquet'?)" in error(
        source=f"{files}/parquet/000.parque"
    )
    assert f"(there is no folder {files}/nowhere)" in error(source=f"{files}/nowhere/000.parquet")
    assert "(did you mean 'sample'?)" in error(source="smaple")
    assert "matches no .parquet, .jsonl or .bin file" in error(source=f"{files}/parquet/*.jsonl")
    (files / "empty").mkdir()
    assert (
        error(source=f"{files}/empty") == f"data.source: {files}/empty holds no .parquet, .jsonl or .bin file"
    )


def test_a_missing_column_or_one_without_text_is_named(files: Path) -> None:
    write_parquet(files / "columns" / "a.parquet", ["one"], number=[1])
    where = str(files / "columns")
    assert error(source=where, text_column="texts") == (
        f"data.text_column is 'texts', but {where}/a.parquet has the columns text, number "
        "(did you mean 'text'?)"
    )
    pq.write_table(pa.table({"page": ["two"]}), files / "columns" / "b.parquet")
    assert f"'text', but {where}/b.parquet has the columns page" in error(source=where)
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, files / "twice.parquet")
    assert "twice.parquet has the columns text, text" in error(source=str(files / "twice.parquet"))
    assert "that column of" in error(source=where, text_column="number")
    assert "has the columns text, score" in error(source=str(files / "plain"), text_column="page")


def test_a_split_that_is_not_there_is_named(files: Path) -> None:
    assert error(source=str(files / "parquet"), split="test").endswith("has only train")


def test_options_that_would_have_no_effect_are_refused(files: Path) -> None:
    assert "data.subset is 'x'" in error(source=f"{files}/parquet/*.parquet", subset="x")
    assert "data.revision is 'main'" in error(source=f"{files}/parquet", revision="main")


def test_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [])
    assert error(source=str(tmp_path)) == f"data.source: {tmp_path} holds no documents"


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is no parquet file PAR1")
    assert "a.parquet is not a readable parquet file" in error(source=str(tmp_path / "a.parquet"))


def test_an_unreachable_hub_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(*_: object, **options: object) -> None:
        asked.append(options)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"it waits {seconds} s"))
    message = error(source="HuggingFaceFW/fineweb", subset="sample-10BT")
    assert (
        "HuggingFaceFW/fineweb is no file or folder here, and the Hugging Face hub cannot be reached"
        in message
    )
    assert "without a network use `sample`" in message
    assert asked == [{"revision": None, "timeout": 10}], "it is asked once"


def test_a_data_set_that_the_hub_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        response = SimpleNamespace(status_code=404, headers={}, request=None)
        raise RepositoryNotFoundError("no such repository", response=response)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", missing)
    message = error(source="some/thing", revision="v1")
    assert "does not give some/thing at revision v1 (HTTP 404)" in message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_that_stops_inside_a_source_exits(files: Path, workers: int) -> None:
    program = (
        "from data import *\n"
        f"config = DataConfig(source={str(files / 'parquet')!r}, lanes=4, workers={workers})\n"
        "corpus, validation = open_data(config)\n"
        "loader = LaneLoader(corpus, config, block_size=8, micro_batch=2)\n"
        "print(next(loader)[0].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([2, 9])"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lanes", 0),
        ("seed", -1),
        ("validation_tokens", 0),
        ("source", ""),
        ("text_column", ""),
        ("tokenizer", ""),
        ("cache_dir", ""),
        ("validation_source", ""),
        ("shuffle_window", 0),
        ("workers", -1),
        ("prefetch", 0),
        ("max_document_bytes", 0),
    ],
)
def test_numbers_out_of_range_name_their_key(key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^data\.{key} is "):
        DataConfig(**{key: value})


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the development data is not here")
def test_real_fineweb_rows_are_read() -> None:
    source = open_source(DataConfig(source=str(SHARED_DATA / "fineweb" / "fineweb_20rows.parquet")))
    texts = read_all(source)
    assert len(texts) == 20 and texts[0].startswith("The F-word continues to reverberate")
