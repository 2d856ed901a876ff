"""A path that exists as it is written is a path and no pattern, whatever characters it has."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data import DataConfig, Source, open_data, open_source, open_tokenizer
from data.sources.local import literal_root, matching
from tests.data.token_files import nanogpt_file

NAME = "[v1] *?x{1,2}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("data.sources.jsonl.JSONL_DIR", tmp_path / NAME / "jsonl")


def write(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1)


def read(where: Path | str, **options: str) -> list[str]:
    config = DataConfig(source=str(where), **options)  # type: ignore[arg-type]
    source: Source = open_source(config, open_tokenizer("gpt2"))
    found = [document for shard in source.shards for document in source.read(shard).kept]
    return [open_tokenizer("gpt2").decode(one[:-1]) if isinstance(one, np.ndarray) else one for one in found]


def test_every_kind_of_source_is_read_below_a_folder_with_brackets(tmp_path: Path) -> None:
    home = tmp_path / NAME
    write(home / "parquet" / "part[1].parquet", "one")
    write(home / "parquet" / "qart2.parquet", "two")
    write(tmp_path / "v" / "parquet" / "part1.parquet", "a folder that the pattern would match")
    (home / "lines").mkdir()
    (home / "lines" / "a.jsonl").write_text('{"text": "line"}\n')
    (home / "lines" / "b.txt").write_text("text\n")
    (home / "text").mkdir()
    (home / "text" / "b.txt").write_text("text\n")
    (home / "tokens").mkdir()
    nanogpt_file(home / "tokens" / "train.bin", ["tokens"])
    assert read(home / "parquet") == read(f"{home}/parquet/*.parquet") == ["one", "two"]
    assert read(home / "parquet" / "part[1].parquet") == ["one"]
    assert read(f"{home}/parquet/qart[2].parquet") == read(f"{home}/par*/qart2.*") == ["two"]
    assert read(f"{home}/**/*.parquet") == ["one", "two"]
    assert read(home / "lines") == read(home / "lines" / "a.jsonl") == ["line"]
    assert read(home / "text") == read(f"{home}/text/*.txt") == ["text"]
    assert read(home / "tokens") == read(f"{home}/tokens/*.bin") == ["tokens"]
    assert read(home / "parquet", files="*.parquet") == ["one", "two"]
    assert read(home / "parquet", files="part[1].parquet") == ["one"]
    assert read(home, files="parquet/qart[2].parquet") == ["two"]


def test_a_relative_path_with_brackets_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / NAME / "a.parquet", "one")
    monkeypatch.chdir(tmp_path)
    for where in (
        NAME,
        f"{NAME}/a.parquet",
        f"{NAME}/*.parquet",
        f"./{NAME}",
        f"../{tmp_path.name}/{NAME}/a*",
    ):
        assert read(where) == ["one"]


@pytest.mark.parametrize("name", ["plain", NAME])
def test_a_folder_with_a_card_is_read_as_the_hub_reads_it(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    write(home / "a" / "cc-test-suite.parquet", "trained on")
    write(home / "a" / "x.parquet.tmp", "not finished")
    write(home / "b" / "0.parquet", "held out")
    splits = [{"split": "train", "path": "a/*"}, {"split": "validation", "path": "b/*"}]
    configs = [{"config_name": "one", "data_files": splits}, {"config_name": "two", "data_files": "b/*"}]
    (home / "README.md").write_text(f"---\nlicense: mit\nconfigs: {json.dumps(configs)}\n---\n# A card\n")
    assert read(home, subset="one") == ["trained on"]
    assert read(home, subset="one", split="validation") == ["held out"]
    assert read(home, subset="two") == ["held out"]
    config = DataConfig(source=str(home), subset="one")
    source = open_source(config, open_tokenizer("gpt2"))
    assert list(source.file_sizes) == [f"{home}/a/cc-test-suite.parquet"]
    assert source.validation_split == "validation"
    (note,) = source.notes
    assert note.startswith("data.source: 1 file of ") and "x.parquet.tmp" in note
    said: list[str] = []
    open_data(config, said.append)
    assert said == [f"validation: the split `validation` of {home} (1 file)"]


@pytest.mark.parametrize("name", ["plain", NAME])
def test_a_card_may_name_files_of_a_rare_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "c").mkdir(parents=True)
    (tmp_path / name / "c" / "a.csv").write_text("text\ntable\n")
    card = json.dumps([{"config_name": "default", "data_files": "c/*.csv"}])
    (tmp_path / name / "README.md").write_text(f"---\nconfigs: {card}\n---\n")
    assert read(tmp_path / name) == ["table"]


def test_a_card_without_configs_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "cc-test-suite.parquet", "one")
    write(tmp_path / "part-a.parquet", "two")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nconfigs: none\n")
    assert read(tmp_path) == ["one", "two"]


def test_the_folders_that_there_are_come_before_the_pattern(tmp_path: Path) -> None:
    write(tmp_path / "[ab]" / "c" / "x.parquet", "one")
    assert literal_root(tmp_path / "[ab]" / "c" / "*.parquet") == (tmp_path / "[ab]" / "c", "*.parquet")
    assert literal_root(tmp_path / "[cd]" / "c" / "x") == (tmp_path, "[cd]/c/x")
    assert matching(tmp_path, "[ab]/*/x.parquet") == (["[ab]/c/x.parquet"], [])
    assert matching(tmp_path, "**/*.parquet") == (["[ab]/c/x.parquet"], [])


def test_globs_of_a_storage_follow_the_same_rules() -> None:
    storage = MemoryFileSystem()
    for name in ("train-0", "train-1", "val-0", "_x", "sub[1]/a"):
        with storage.open(f"/h2/{name}.parquet", "wb") as file:
            pq.write_table(pa.table({"text": [name]}), file)
    storage.pipe("/h2/train-2.parquet.tmp", b"not finished")
    assert read("memory://h2/*.parquet") == ["train-0", "train-1"]
    assert read("memory://h2/*.parquet", split="validation") == ["val-0"]
    assert read("memory://h2/val*.parquet") == ["val-0"]
    assert read("memory://h2/sub[1]/a.parquet") == ["sub[1]/a"]
    assert read("memory://h2", files="train-*") == ["train-0", "train-1"]
    assert read("memory://h2/sub[1]", files="*.parquet") == ["sub[1]/a"]
