"""`scripts/tokenize_data.py`: the same documents in the same shards, whatever stops it on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from data import Corpus, DataConfig, Lane, open_source, open_tokenizer
from data.sources import Documents, Source, corpus_fingerprint, read_shard, write_shard
from data.tokenize_source import tokenize_source
from model.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"
SCRIPT = ROOT / "scripts" / "tokenize_data.py"


def write_parquet(path: Path, first: int, rows: int, group: int, repeat: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [
        None
        if n % 40 == 7
        else ""
        if n % 40 == 8
        else f"Text {n}: {' '.join(map(str, range(n % 97)))}" * repeat
        for n in range(first, first + rows)
    ]
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=group)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of one name, with small row groups, and one with a row group of several shards."""
    folder = tmp_path_factory.mktemp("parquet")
    write_parquet(folder / "a" / "000.parquet", 0, 200, 100)
    write_parquet(folder / "b" / "000.parquet", 200, 100, 100)
    write_parquet(folder / "b" / "001.parquet", 300, 2500, 2500)
    return folder


def opened(where: Path | str, **options: object) -> Source:
    config = DataConfig(source=str(where), **({"tokenizer": "bytes"} | options))  # type: ignore[arg-type]
    return open_source(config, open_tokenizer(config.tokenizer))


def tokenized(where: Path | str, folder: Path, workers: int = 1, **options: object) -> Path:
    config = DataConfig(source=str(where), **({"tokenizer": "bytes"} | options))  # type: ignore[arg-type]
    tokenizer = open_tokenizer(config.tokenizer)
    tokenize_source(open_source(config, tokenizer), config, tokenizer, str(folder), workers)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def run(*arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def assert_same(source: Source, tokens: Source, tokenizer: str = "bytes") -> None:
    encode = open_tokenizer(tokenizer).encode_document
    assert len(source.shards) == len(tokens.shards)
    for one, other in zip(source.shards, tokens.shards, strict=True):
        assert (one.index, one.group, one.first_row, one.rows) == (
            other.index,
            other.group,
            other.first_row,
            other.rows,
        )
        assert one.path.endswith(other.path)
        texts, documents = source.read(one), tokens.read(other)
        assert texts.bad == documents.bad and len(texts.kept) == len(documents.kept)
        for text, document in zip(texts.kept, documents.kept, strict=True):
            assert isinstance(text, str) and np.array_equal(encode(text), document)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_reads_the_same_sequences_from_the_shards(parquet: Path, tmp_path: Path, workers: int) -> None:
    source, tokens = opened(parquet), opened(tokenized(parquet, tmp_path / "out", workers))
    tokenizer = open_tokenizer("bytes")
    assert_same(source, tokens)
    assert source.fingerprint == tokens.fingerprint
    assert corpus_fingerprint(source, tokenizer) == corpus_fingerprint(tokens, tokenizer)
    assert corpus_fingerprint(tokens, tokenizer) != corpus_fingerprint(tokens, open_tokenizer("gpt2"))
    for lanes, packing, window in ((3, "concat", 1), (5, "concat", 2), (2, "best_fit", 1)):
        config = DataConfig(lanes=lanes, packing=packing, shuffle_window=window)  # type: ignore[arg-type]
        for lane in range(lanes):
            one, other = (
                Lane(Corpus(each, tokenizer, each.shards), config, lane, 64) for each in (source, tokens)
            )
            for _ in range(200):
                blocks = np.empty(65, np.uint16), np.empty(65, np.uint16)
                assert one.fill(blocks[0]) == other.fill(blocks[1])
                assert np.array_equal(*blocks)


@pytest.mark.usefixtures("large_shards")
def test_the_manifest_says_what_is_there(parquet: Path, tmp_path: Path) -> None:
    manifest = json.loads((tokenized(parquet, tmp_path / "out") / "manifest.json").read_text())
    source = opened(parquet)
    found = [source.read(shard) for shard in source.shards]
    texts = [text for part in found for text in part.kept if isinstance(text, str)]
    assert manifest["documents"] == len(texts) == 2660
    assert manifest["text_bytes"] == sum(len(text) for text in texts) == manifest["tokens"] - len(texts)
    assert manifest["bad"] == {"empty": 140}
    assert manifest["tokenizer"] == {
        "name": "bytes",
        "fingerprint": open_tokenizer("bytes").fingerprint,
        "vocab_size": 257,
        "eot": 256,
    }
    paths = [shard["path"] for shard in manifest["shards"]]
    assert paths == [*["a/000.parquet"] * 2, "b/000.parquet", *["b/001.parquet"] * 3]
    for shard in manifest["shards"]:
        assert (
            (tmp_path / "out" / shard["file"]).stat().st_size == shard["bytes"] == 1024 + 2 * shard["tokens"]
        )


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data")
def test_real_text_comes_back(tmp_path: Path) -> None:
    prose = SHARED_DATA / "corpus" / "prose" / "000_00000.parquet"
    for name, where in (("fineweb", SHARED_DATA / "fineweb"), ("prose", prose)):
        tokens = opened(tokenized(where, tmp_path / name, 2, tokenizer="gpt2"), tokenizer="gpt2")
        source = opened(where, tokenizer="gpt2")
        assert_same(source, tokens, "gpt2")
        decode = open_tokenizer("gpt2").decode
        documents = [document for shard in tokens.shards for document in tokens.read(shard).kept]
        texts = [text for shard in source.shards for text in source.read(shard).kept]
        assert [decode(document[:-1]) for document in documents] == texts  # type: ignore[arg-type]


def test_the_command_works_from_anywhere_and_names_the_recipe_key(parquet: Path, tmp_path: Path) -> None:
    assert "--data.tokenizer" in run("--help", folder=tmp_path).stdout
    done = run(parquet, "--out", "tokens", "--data.tokenizer", "bytes", "--workers", "2", folder=tmp_path)
    assert done.returncode == 0
    *_, line = done.stdout.splitlines()
    assert line.startswith("2,660 documents, ") and "(left out: 140 empty)" in line
    assert line.endswith("data.source: tokens")
    assert contents(tmp_path / "tokens") == contents(tokenized(parquet, tmp_path / "again"))


STOPPED = """
import os, runpy, signal, sys, time
from pathlib import Path
import data.tokenize_source as tokenizing

stop_at, sent, script, source, out = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]
command, write = os.getpid(), tokenizing.write_shard

def write_and_stop_the_command(*arguments):
    write(*arguments)
    if len(list(Path(out).glob("*.bin"))) >= stop_at and os.getppid() == command:
        os.kill(command, sent)
        while os.getppid() == command:
            time.sleep(0.01)

tokenizing.write_shard = write_and_stop_the_command
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.argv = [script, source, "--out", out, "--workers", "2"]
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_continues_to_the_same_bytes(tmp_path: Path) -> None:
    for number in range(12):
        write_parquet(tmp_path / "in" / f"{number:03d}.parquet", 1000 * number, 1000, 100, repeat=6)
    whole = contents(tokenized(tmp_path / "in", tmp_path / "whole", tokenizer="gpt2"))
    out = tmp_path / "out"
    command = [sys.executable, SCRIPT, tmp_path / "in", "--out", out, "--workers", "2"]
    for stop_at, sent in ((1, signal.SIGKILL), (30, signal.SIGINT), (60, signal.SIGKILL)):
        words = [str(stop_at), str(int(sent)), str(SCRIPT), str(tmp_path / "in"), str(out)]
        done = subprocess.run(
            [sys.executable, "-c", STOPPED, *words], cwd=ROOT, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == (130 if sent == signal.SIGINT else -sent)
        assert "Traceback" not in done.stderr
        assert stop_at <= len(list(out.glob("*.bin"))) < 120 and not (out / "manifest.json").exists()
        with pytest.raises(UserError, match=r"not complete: run scripts/tokenize_data\.py again"):
            opened(out, tokenizer="gpt2")
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.bin")}
    time.sleep(0.5)  # a process of the killed run may be finishing its shard
    (out / "shard_00000003.bin").write_bytes(whole["shard_00000003.bin"][:500])
    (out / "shard_00000004.bin").write_bytes(whole["shard_00000005.bin"][:-1] + b"!")
    (out / ".shard_00000099.bin.7.partial").write_bytes(b"half")
    assert run(*command[2:]).returncode == 0
    assert contents(out) == whole
    made_again = {path.name for path, time_ in kept.items() if path.stat().st_mtime_ns != time_}
    assert made_again == {"shard_00000003.bin", "shard_00000004.bin"}


def test_a_folder_that_holds_something_else_is_left_alone(parquet: Path, tmp_path: Path) -> None:
    out = tokenized(parquet, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(out)
    for message, arguments in {
        "which has changed or is not what is asked for now": {"tokenizer": "gpt2"},
        "documents of up to 20000000 bytes": {"max_document_bytes": 100},
    }.items():
        with pytest.raises(UserError, match=message):
            tokenized(parquet, out, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--out: .* give another folder"):
        tokenized(parquet / "a", out)
    with pytest.raises(UserError, match="holds other files: give a new or an empty folder"):
        tokenized(parquet, tmp_path / "other")
    with pytest.raises(UserError, match="cannot be made a folder"):
        tokenized(parquet, tmp_path / "file")
    with pytest.raises(UserError, match=r"--out: .*/tokens is inside the source .*: give a folder elsewhere"):
        tokenized(parquet, parquet / "a" / "tokens")
    assert not (parquet / "a" / "tokens").exists()
    assert contents(out) == before and contents(tmp_path / "other") == {"file": b"mine"}


def test_two_at_once_are_not_let_into_one_folder(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.tokenize_source.LOCK_SECONDS", 0.1)
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(UserError, match="another process is writing to"),
    ):
        tokenized(parquet, tmp_path / "out")


@pytest.mark.usefixtures("large_shards")
def test_a_folder_that_is_not_what_it_says_gets_a_sentence(parquet: Path, tmp_path: Path) -> None:
    out = tokenized(parquet, tmp_path / "out", max_document_bytes=1000)
    assert opened(out).read(opened(out).shards[0]).kept
    for message, options in {
        "data.tokenizer is 'gpt2', but .* was made with bytes": {"tokenizer": "gpt2"},
        "data.max_document_bytes is 999, but .* was made with 1000": {"max_document_bytes": 999},
        r"data.on_bad_document is stop, but .*\(140 empty\)": {"on_bad_document": "stop"},
        "data.subset is 'x', but": {"subset": "x"},
    }.items():
        with pytest.raises(UserError, match=message):
            opened(out, **options)
    shard = out / "shard_00000001.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2])
    with pytest.raises(UserError, match=r"has not its size: run scripts/tokenize_data\.py again"):
        opened(out)
    shard.write_bytes(whole[:-1] + b"!")
    source = opened(out)
    assert source.read(source.shards[1]).bad == {"unreadable": 100}
    shard.write_bytes(whole)
    kept, bad = read_shard(str(shard), 256)
    write_shard(str(shard), Documents([kept[1], kept[0], *kept[2:]], bad), np.dtype(np.uint16))
    assert opened(out).read(source.shards[1]).bad == {"unreadable": 100}
    shard.unlink()
    with pytest.raises(UserError, match=r"is missing: run scripts/tokenize_data\.py again"):
        opened(out)
    tokenized(parquet, out, max_document_bytes=1000)
    assert shard.read_bytes() == whole and opened(out).read(source.shards[1]).bad == {"empty": 4}


def test_a_mistake_is_one_sentence(parquet: Path, tmp_path: Path) -> None:
    for words, arguments in {
        "--out": (parquet,),
        "has no text": (parquet, "--out", tmp_path / "out", "--data.on_bad_document", "stop"),
    }.items():
        done = run(*arguments)
        assert done.returncode == 2 and done.stdout == ""
        line = done.stderr.splitlines()[-1]
        assert line.startswith("error: ") and words in line and "Traceback" not in done.stderr
    assert not os.path.exists(tmp_path / "out" / "manifest.json")
