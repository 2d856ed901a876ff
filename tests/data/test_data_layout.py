"""Which files of a folder are read, and as which split: by the layout of the whole folder."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import DataConfig, Source, open_source, open_tokenizer
from data.sources.local import divided, supplied_split
from model.errors import UserError
from tests.data.token_files import nanogpt_file

PLAIN = ["a.parquet", "b.parquet"]


def write(folder: Path, *names: str) -> Path:
    """Files with one document each: its own name, mostly without suffix."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = name.partition(".")[0] or name
        if ".jsonl" in name:
            path.write_text(f'{{"text": "{text}"}}\n')
        elif name.endswith(".bin"):
            nanogpt_file(path, [text])
        else:
            pq.write_table(pa.table({"text": [text]}), path)
    return folder


def opened(where: Path | str, **options: str) -> Source:
    return open_source(DataConfig(source=str(where), tokenizer="gpt2", **options), open_tokenizer("gpt2"))  # type: ignore[arg-type]


def texts(where: Path | str, **options: str) -> list[str]:
    source, decode = opened(where, **options), open_tokenizer("gpt2").decode
    found = [document for shard in source.shards for document in source.read(shard).kept]
    return [one if isinstance(one, str) else decode(one[:-1]) for one in found]


@pytest.mark.parametrize(
    ("names", "train", "held_out"),
    [
        # what `datasets` and nanoGPT write
        ("train-00000-of-00002 train-00001-of-00002 validation-00000-of-00001", "train-", "validation-"),
        ("train-00000-of-00001-a09b74b3ef9c3b56 test-00000-of-00001-0f3e4a6b7c8d9e01", "train-", "test-"),
        ("train val", "train", "val"),
        ("Train VALID", "Train", "VALID"),
        ("train/0 train/1 val/0", "train/", "val/"),
        ("en/train/0 en/dev/0", "en/train/", "en/dev/"),
        ("train/test-1 train/test-2 validation/test-3", "train/", "validation/"),
        ("my-test/train-0 my-test/val-0", "my-test/train", "my-test/val"),
        ("fineweb_train_000001 fineweb_train_000002 fineweb_val_000000", "fineweb_train", "fineweb_val"),
        ("wiki.train wiki.test", "wiki.train", "wiki.test"),
        ("train.0 train.1 eval.0", "train.", "eval."),
        ("books-train-a books-test-a", "books-train", "books-test"),
        # no file says train, and one says that it is held out
        ("shard_00 shard_01 val", "shard", "val"),
        ("owt owt_val", "owt", "owt_val"),
        ("part-0 part-1 test", "part", "test"),
    ],
)
def test_files_that_divide_into_train_and_held_out_are_splits(names: str, train: str, held_out: str) -> None:
    files = sorted(f"{name}.parquet" for name in names.split())
    splits = divided(files, rest_is_train=False)
    held_out_files = [file for file in files if file.startswith(held_out) and file != f"{train}.parquet"]
    assert splits.pop("train") == [file for file in files if file not in held_out_files]
    (name,) = splits
    assert name in ("validation", "test") and splits[name] == held_out_files
    assert supplied_split(["train", name], "train") == name


@pytest.mark.parametrize(
    "names",
    [
        "cc-test-suite part-a part-b",
        "cc-val-de-loire part-a part-b",
        "wiki books math-train",
        "medieval interval_1 xval",
        "unit-test books",
        "pre-training post-training books",
        "test-suite wiki",
        "000_00000 000_00001 000_00002",
        "part-00000-3e0dev1-c000 part-00001-3e0de71-c000",
    ],
)
def test_a_word_inside_of_names_makes_no_split(names: str) -> None:
    assert divided(sorted(f"{name}.parquet" for name in names.split()), rest_is_train=False) == {}


def test_a_test_split_counts_only_where_there_is_no_validation_split() -> None:
    assert supplied_split(["train", "test", "validation"], "train") == "validation"
    assert supplied_split(["train", "val"], "train") == "val"
    assert supplied_split(["train", "test"], "train") == "test"
    assert supplied_split(["train_sft", "test_sft", "test_prefs"], "train_sft") == "test_sft"
    assert supplied_split(["train", "random"], "train") is None
    assert supplied_split(["train", "validation", "test"], "validation") is None


def test_three_shards_of_which_one_has_test_in_its_name_are_all_read(tmp_path: Path) -> None:
    write(tmp_path, "cc-test-suite.parquet", "part-a.parquet", "part-b.parquet")
    assert texts(tmp_path) == ["cc-test-suite", "part-a", "part-b"]
    assert opened(tmp_path).notes == [] and opened(tmp_path).validation_split is None


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "bin"])
def test_a_split_is_read_in_every_format_from_folders_and_names(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "names", f"train-0.{suffix}", f"train-1.{suffix}", f"val-0.{suffix}")
    write(tmp_path / "folders", f"train/0.{suffix}", f"train/1.{suffix}", f"val/0.{suffix}")
    assert texts(tmp_path / "names") == ["train-0", "train-1"]
    assert texts(tmp_path / "folders") == ["train/0", "train/1"]
    for split in ("validation", "val"):
        assert texts(tmp_path / "names", split=split) == ["val-0"]
        assert texts(tmp_path / "folders", split=split) == ["val/0"]
    # a glob that matches both is a folder of its own, one that matches one is all that it says
    assert texts(f"{tmp_path}/names/*.{suffix}") == ["train-0", "train-1"]
    assert texts(f"{tmp_path}/names/v*.{suffix}") == ["val-0"]
    assert opened(f"{tmp_path}/names/*.{suffix}").validation_split == "validation"
    assert opened(tmp_path / "names" / f"train-0.{suffix}").validation_split is None
    with pytest.raises(UserError, match=r"data\.split is 'test', but .* has only train, validation"):
        opened(tmp_path / "names", split="test")


UNFINISHED = [
    "_x.parquet",
    ".x.parquet",
    "x.parquet.tmp",
    "x.parquet.part",
    "x.parquet~",
    "x.parquet.1",
    "x.parquet_old",
    "x.parquet.gz",
    "x.jsonl.gz.crdownload",
    "_temporary/0/x.parquet",
    ".cache/x.parquet",
]


def test_hidden_and_unfinished_files_of_a_folder_are_left_out_and_said(tmp_path: Path) -> None:
    write(tmp_path, *PLAIN)
    for name in UNFINISHED:
        write(tmp_path, name)
    (tmp_path / ".a.parquet.crc").write_bytes(b"a checksum is no file that could be missed")
    (tmp_path / "_SUCCESS").touch()
    for where in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/**"):
        assert texts(where) == ["a", "b"]
    (note,) = opened(tmp_path).notes
    count = len(UNFINISHED) - 1  # what lies deep in a hidden folder is not looked for
    assert note == (
        f"data.source: {count} files of {tmp_path} with the name of a hidden or unfinished one left out, the "
        f"first is {sorted(UNFINISHED)[0]}."
    )
    assert texts(tmp_path, files="*.parquet*") == ["a", "b"]
    (note,) = opened(tmp_path, files="*.parquet*").notes
    names = [name for name in UNFINISHED if "/" not in name and ".parquet" in name]
    assert note.startswith(f"data.source: {len(names)} files of ")


def test_only_unfinished_files_are_a_sentence(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet.tmp")
    for where in (tmp_path, f"{tmp_path}/*"):
        with pytest.raises(UserError, match=r"no \.parquet, .* \(1 file of .* the first is a\.parquet\.tm"):
            opened(where)


def test_a_hidden_file_that_is_named_is_read_and_no_unknown_suffix(tmp_path: Path) -> None:
    write(tmp_path, "_x.parquet", ".hidden/y.parquet", "z.parquet.tmp")
    assert texts(tmp_path / "_x.parquet") == ["_x"]
    assert texts(f"{tmp_path}/_*.parquet") == ["_x"]
    assert len(texts(f"{tmp_path}/.hidden/*.parquet")) == 1
    assert texts(tmp_path, files="_x.parquet") == ["_x"]
    with pytest.raises(UserError, match=r"z\.parquet\.tmp is no \.parquet"):
        opened(tmp_path / "z.parquet.tmp")


def test_splits_of_other_names_are_those_that_datasets_made(tmp_path: Path) -> None:
    end = "-00000-of-00001.parquet"
    write(tmp_path, *(f"data/{name}{end}" for name in ("train_sft", "train_gen", "test_sft")))
    assert texts(tmp_path, split="train_gen") == ["data/train_gen-00000-of-00001"]
    assert opened(tmp_path, split="train_sft").validation_split == "test_sft"
    with pytest.raises(UserError, match=r"split is 'train', but .* has only test_sft, train_gen, train_sft"):
        opened(tmp_path)
    write(tmp_path / "topics", *(f"data/{name}{end}" for name in ("wiki", "books")))
    assert len(texts(tmp_path / "topics")) == 2
    assert texts(tmp_path / "topics", split="wiki") == ["data/wiki-00000-of-00001"]


def test_one_stray_file_of_tokens_does_not_make_a_folder_of_them(tmp_path: Path) -> None:
    write(tmp_path, *PLAIN, "stray.bin")
    source = opened(tmp_path)
    assert texts(tmp_path) == ["a", "b"] and not source.holds_tokens
    (note,) = source.notes
    assert "(1 are not, such as stray.bin)" in note
    write(tmp_path / "tokens", "train.bin", "val.bin", "meta.jsonl")
    assert opened(tmp_path / "tokens").holds_tokens and texts(tmp_path / "tokens") == ["train"]


def test_json_files_that_describe_others_are_no_documents(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet")
    for name in ("meta", "stats", "info"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert texts(tmp_path) == ["a"] and opened(tmp_path).notes == []


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "b.parquet")
    write(tmp_path / "corpus", "a.parquet")
    (tmp_path / "corpus" / "more").symlink_to(tmp_path / "elsewhere")
    for name in ("another", "more"):
        (tmp_path / "corpus" / name).unlink(missing_ok=True)
        (tmp_path / "corpus" / name).symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "corpus", "z/c.parquet")
    (tmp_path / "corpus" / "also-c").symlink_to(tmp_path / "corpus" / "z")
    (tmp_path / "corpus" / "loop").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "z" / "above").symlink_to(tmp_path)
    assert texts(tmp_path / "corpus") == ["a", "b", "z/c"]
    assert list(opened(tmp_path / "corpus").file_sizes)[1:] == [
        f"{tmp_path}/corpus/another/b.parquet",
        f"{tmp_path}/corpus/z/c.parquet",
    ]
