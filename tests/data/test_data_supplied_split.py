"""A source's own validation split is what is held out, and a run says which documents are."""

import io
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import Corpus, DataConfig, ValidationSet, gpt2_encoding, open_data
from data.sources import BadRow, network
from model.errors import UserError
from tests.data.servers import Server, hub, serving
from tests.data.token_files import nanogpt_file

TRAIN = [f"Document {number} is trained on, {number * 7} times." for number in range(60)]
HELD_OUT = [f"Held out {number}." for number in range(6)]


def write(path: Path, texts: list[str], column: str = "text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".bin":
        nanogpt_file(path, texts)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    else:
        pq.write_table(pa.table({column: texts}), path, row_group_size=2)


def opened(where: Path | str, **options: str) -> tuple[Corpus, ValidationSet, list[str]]:
    said: list[str] = []
    corpus, validation = open_data(DataConfig(source=str(where), **options), said.append)  # type: ignore[arg-type]
    return corpus, validation, said


def texts_of(validation: ValidationSet) -> list[str]:
    return gpt2_encoding().decode(validation.tokens[1:].tolist()).split("<|endoftext|>")[:-1]


def trained_on(corpus: Corpus) -> list[str]:
    documents = [document for shard in corpus.shards for document in corpus.read(shard).kept]
    decode = gpt2_encoding().decode
    return [one if isinstance(one, str) else decode(one[:-1].tolist()) for one in documents]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.jsonl.JSONL_DIR", tmp_path / "jsonl")


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
        ("train.jsonl", "val.jsonl"),
        ("train/0.parquet", "valid/0.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("train.bin", "val.bin"),
        ("train/0.bin", "val/0.bin"),
        ("part-0.parquet", "validation.parquet"),
    ],
)
def test_a_supplied_split_is_held_out_and_all_of_train_is_trained_on(
    tmp_path: Path, train: str, held_out: str
) -> None:
    write(tmp_path / "corpus" / train, TRAIN)
    write(tmp_path / "corpus" / held_out, HELD_OUT)
    corpus, validation, said = opened(tmp_path / "corpus")
    assert texts_of(validation) == HELD_OUT and trained_on(corpus) == TRAIN
    split = "test" if "test" in held_out else "validation"
    assert said == [f"validation: the split `{split}` of {tmp_path}/corpus (1 file)"]


def test_a_test_split_is_left_alone_where_there_is_a_validation_split(tmp_path: Path) -> None:
    for name, texts in {"train": TRAIN, "validation-0": HELD_OUT[:3], "validation-1": HELD_OUT[3:]}.items():
        write(tmp_path / f"{name}.parquet", texts)
    write(tmp_path / "test.parquet", ["A test."])
    corpus, validation, said = opened(tmp_path)
    assert texts_of(validation) == HELD_OUT and trained_on(corpus) == TRAIN
    assert said == [f"validation: the split `validation` of {tmp_path} (2 files)"]
    assert texts_of(opened(tmp_path, split="validation")[1]) != HELD_OUT


def test_what_is_held_out_otherwise_is_said_too(tmp_path: Path) -> None:
    write(tmp_path / "a" / "train.parquet", TRAIN)
    write(tmp_path / "a" / "val.parquet", HELD_OUT)
    write(tmp_path / "b.parquet", ["Other."])
    where = str(tmp_path / "a" / "train.parquet")
    for options in ({"source": where}, {"source": str(tmp_path / "a"), "files": "train.parquet"}):
        corpus, validation, said = opened(options.pop("source"), **options)
        count = len(texts_of(validation))
        assert said == [f"validation: the last {count} documents of {corpus.source.name}"]
        assert texts_of(validation) == TRAIN[-count:]
    _, validation, said = opened(tmp_path / "a", validation_source=str(tmp_path / "b.parquet"))
    assert said == [f"validation: data.validation_source {tmp_path}/b.parquet"]
    assert texts_of(validation) == ["Other."]
    assert opened("sample")[2][-1] == "validation: the sample's own part"  # it may be built first


def test_copies_of_a_supplied_split_are_left_out_of_training(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [HELD_OUT[2], *TRAIN, f" {HELD_OUT[4]}\n"])
    write(tmp_path / "val.parquet", HELD_OUT)
    corpus, validation, _ = opened(tmp_path)
    assert texts_of(validation) == HELD_OUT
    rows = [row for shard in corpus.shards for row in corpus.rows(shard)[0]]
    made = [corpus.tokens(row) for row in rows]
    assert Counter(one.reason for one in made if isinstance(one, BadRow)) == {
        "held_out": 1,
        "held_out_near": 1,
    }
    assert sum(isinstance(one, np.ndarray) for one in made) == len(TRAIN)


def test_the_text_column_of_validation_may_be_another(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", TRAIN, "page")
    write(tmp_path / "held" / "a.parquet", HELD_OUT)
    held_out = str(tmp_path / "held")
    where = str(tmp_path / "train.parquet")
    _, validation, _ = opened(
        where, text_column="page", validation_source=held_out, validation_text_column="text"
    )
    assert texts_of(validation) == HELD_OUT
    with pytest.raises(UserError, match=r"^data\.validation_text_column is 'page', but .*a\.parquet has the"):
        opened(where, text_column="page", validation_source=held_out)
    _, validation, _ = opened(where, text_column="page", validation_source="sample")
    assert len(validation.bytes) > 10
    corpus, _, _ = opened(where, text_column="page", validation_text_column="text")
    assert "data.validation_text_column does nothing: validation is the end of the source itself." in (
        corpus.source.notes
    )


def test_a_split_may_have_a_text_column_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", TRAIN, "page")
    write(tmp_path / "val.parquet", HELD_OUT)
    _, validation, _ = opened(tmp_path, text_column="page", validation_text_column="text")
    assert texts_of(validation) == HELD_OUT


def parquet_bytes(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file, row_group_size=2)
    return file.getvalue()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def train_on_hub(server_url: str, cache_dir: str) -> None:
    """Runs in a process of its own, where `HF_ENDPOINT` was the server at import."""
    import urllib.request

    network.RETRY_SECONDS = (0,)
    for fault in (False, True):  # the second time from the cache
        if fault:
            urllib.request.urlopen(f"{server_url}/faults/drop/9999").close()
        corpus, validation, said = opened("org/name", cache_dir=cache_dir)
        assert said == ["validation: the split `validation` of org/name (1 file)"]
        assert texts_of(validation) == HELD_OUT
        assert sum(shard.rows for shard in corpus.shards) == len(TRAIN)


def test_a_split_on_the_hub_is_held_out_also_without_the_network(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {"a/0.parquet": parquet_bytes(TRAIN), "b/0.parquet": parquet_bytes(HELD_OUT)}
    hub(server, "org/name", files, {"default": "a/*"}, validation="b/*")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(train_on_hub, server.url, str(tmp_path / "cache")).result(timeout=120)
