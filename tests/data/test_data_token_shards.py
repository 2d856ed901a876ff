"""Token shards: our files are llm.c's, damage is noticed, nanoGPT's and llm.c's give their documents."""

import os
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import DataConfig, open_source, open_tokenizer
from data.sources import DamagedShard, Document, Documents, Source, read_shard, shard_facts, write_shard
from model.errors import UserError
from tests.data.token_files import EOT, llm_c_file, nanogpt_file

ROOT = Path(__file__).resolve().parents[2]


TEXTS = [f"Document {n} is about {' and '.join(str(n * k) for k in range(2 + n % 90))}." for n in range(400)]


def documents(count: int = 30, dtype: type = np.uint16) -> list[Document]:
    draw = np.random.default_rng(count)
    lengths = draw.integers(1, 200, count)
    return [np.append(draw.integers(0, EOT, length), EOT).astype(dtype) for length in lengths]


def same(one: Document, other: Document) -> bool:
    assert isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
    return one.dtype == other.dtype and np.array_equal(one, other)


def open_tokens(where: Path | str, **options: object) -> Source:
    config = DataConfig(source=str(where), **options)  # type: ignore[arg-type]
    source = open_source(config, open_tokenizer(config.tokenizer))
    assert source.holds_tokens
    return source


def all_documents(source: Source) -> list[np.ndarray]:
    found = [document for shard in source.shards for document in source.read(shard).kept]
    return [document for document in found if isinstance(document, np.ndarray)]


def all_texts(source: Source) -> list[str]:
    found = all_documents(source)
    assert all(document[-1] == EOT and EOT not in document[:-1] for document in found)
    return [open_tokenizer("gpt2").decode(document[:-1]) for document in found]


def sentence(where: Path | str, **options: object) -> str:
    with pytest.raises((UserError, ConnectionError)) as caught:
        all_documents(open_tokens(where, **options))
    message = str(caught.value)
    assert "\n" not in message and not message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("dtype", "stored", "magic", "version"),
    [(np.uint16, np.uint16, 20240520, 1), (np.int32, np.uint32, 20240801, 7)],
)
def test_a_shard_comes_back_and_is_a_file_of_llm_c(
    tmp_path: Path, dtype: type, stored: type, magic: int, version: int
) -> None:
    written = Documents(documents(30, dtype), Counter(empty=2, not_utf8=1))
    path = str(tmp_path / "shard.bin")
    write_shard(path, written, np.dtype(dtype), text_bytes=2**33)
    found = read_shard(path, EOT)
    assert found.bad == written.bad and len(found.kept) == 30
    assert all(map(same, found.kept, written.kept))
    # what llm.c's data loader checks and reads
    content = Path(path).read_bytes()
    header, tokens = struct.unpack("<256i", content[:1024]), np.frombuffer(content[1024:], stored)
    assert header[:3] == (magic, version, len(tokens))
    assert tokens.tolist() == [token for document in written.kept for token in document]
    facts = shard_facts(path)
    assert (facts.documents, facts.tokens, facts.bytes) == (30, len(tokens), len(content))
    assert facts.text_bytes == 2**33 and facts.bad == {"empty": 2, "not_utf8": 1}
    assert os.listdir(tmp_path) == ["shard.bin"]


def test_a_shard_without_documents_comes_back(tmp_path: Path) -> None:
    write_shard(str(tmp_path / "a.bin"), Documents([], Counter(too_long=3)), np.dtype(np.uint16))
    assert read_shard(str(tmp_path / "a.bin"), EOT) == Documents([], Counter(too_long=3))


def test_every_kind_of_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    write_shard(str(path), Documents(documents(), Counter(empty=1)), np.dtype(np.uint16))
    whole = path.read_bytes()
    cut = [whole[:size] for size in (0, 3, 1000, 1024, 1025, len(whole) - 2)]
    flipped = [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        for at in (0, 4, 8, 12, 16, 1008, 1016, 1024, len(whole) - 1)
    ]
    for content in (*cut, *flipped, whole + b"\0\0"):
        path.write_bytes(content)
        with pytest.raises(DamagedShard):
            read_shard(str(path), EOT)
    path.write_bytes(whole)
    with pytest.raises(DamagedShard, match="another end of text"):
        read_shard(str(path), EOT - 1)
    with pytest.raises(DamagedShard, match="checksum"):
        read_shard(str(path), EOT, xxh3="0" * 16)
    assert len(read_shard(str(path), EOT, shard_facts(str(path)).xxh3).kept) == 30


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "shard.bin")
    write_shard(path, Documents(documents(3), Counter()), np.dtype(np.uint16))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_shard(path, Documents(documents(9), Counter()), np.dtype(np.uint16))
    assert os.listdir(tmp_path) == ["shard.bin"] and len(read_shard(path, EOT).kept) == 3


@pytest.mark.parametrize("write", [nanogpt_file, llm_c_file])
def test_foreign_files_give_their_documents_in_order(tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path / "a_train_0.bin", TEXTS[:300])
    write(tmp_path / "a_train_1.bin", TEXTS[300:])
    write(tmp_path / "a_val_0.bin", ["held out"])
    source = open_tokens(tmp_path)
    assert all_texts(source) == TEXTS
    assert len(source.shards) > 8 and [shard.index for shard in source.shards] == [*range(len(source.shards))]
    assert len({(shard.path, shard.group) for shard in source.shards}) == len(source.shards)
    assert not any(source.read(shard).bad for shard in source.shards)
    for split in ("validation", "val"):
        assert all_texts(open_tokens(tmp_path, split=split)) == ["held out"]
    assert all_texts(open_tokens(tmp_path / "a_train_*.bin")) == TEXTS
    assert all_texts(open_tokens(tmp_path / "*.bin")) == TEXTS
    assert all_texts(open_tokens(tmp_path / "a_val_*.bin")) == ["held out"]
    assert all_texts(open_tokens(tmp_path / "a_train_1.bin", split="validation")) == TEXTS[300:]
    assert all_texts(open_tokens(tmp_path / "a_val_0.bin")) == ["held out"]
    assert "data.split is 'test'" in sentence(tmp_path, split="test")


def test_only_the_word_val_makes_a_file_one_of_validation(tmp_path: Path) -> None:
    for number, name in enumerate(["medieval.bin", "interval_1.bin", "a-Valid.bin", "val2.bin", "xval.bin"]):
        nanogpt_file(tmp_path / name, [f"Text {number}."])
    assert sorted(all_texts(open_tokens(tmp_path))) == ["Text 0.", "Text 1.", "Text 4."]
    assert sorted(all_texts(open_tokens(tmp_path, split="val"))) == ["Text 2.", "Text 3."]


def test_the_fingerprint_of_foreign_files_follows_them(tmp_path: Path) -> None:
    nanogpt_file(tmp_path / "train.bin", TEXTS)
    before = open_tokens(tmp_path).fingerprint
    assert open_tokens(tmp_path / "train.bin").fingerprint == before
    nanogpt_file(tmp_path / "train.bin", TEXTS[1:])
    assert open_tokens(tmp_path).fingerprint != before


def test_any_shard_can_be_read_alone_and_each_token_is_in_one(tmp_path: Path) -> None:
    nanogpt_file(tmp_path / "train.bin", TEXTS)
    tokens = np.fromfile(tmp_path / "train.bin", np.uint16)
    parts = [open_tokens(tmp_path).read(shard).kept for shard in reversed(open_tokens(tmp_path).shards)]
    assert np.array_equal(np.concatenate([one for part in reversed(parts) for one in part]), tokens)


def test_documents_longer_than_a_shard_stay_whole(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    lengths = [9000, 5, 4096, 20_000, 4095, 1, 30]
    written = [np.append(draw.integers(0, EOT, length), EOT).astype(np.uint16) for length in lengths]
    np.concatenate(written).tofile(tmp_path / "a.bin")
    source = open_tokens(tmp_path / "a.bin")
    assert len(source.shards) == 145 == round(sum(map(len, written)) / 256)
    assert all(map(same, all_documents(source), written))


@pytest.mark.parametrize("write", [nanogpt_file, llm_c_file])
@pytest.mark.parametrize("longest", [2**11, 2**20])
def test_the_last_document_stays_whole_too(tmp_path: Path, write, longest: int, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("data.sources.bin_files.LONGEST_RUN", longest)
    texts = [*TEXTS[:100], "and so on " * 500, "the last " * 6_000]
    write(tmp_path / "a.bin", texts)
    found = all_texts(open_tokens(tmp_path))
    assert "".join(found) == "".join(texts)
    assert found[:101] == texts[:101]
    assert len(found) == 102 if longest > 12_000 else len(found) > 102


def test_a_file_without_an_end_of_text_is_cut_where_its_shards_end(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, EOT, 30_000).astype(np.uint16)
    tokens.tofile(tmp_path / "a.bin")
    found = all_documents(open_tokens(tmp_path / "a.bin"))
    assert len(found) == 117 and {len(document) - 1 for document in found} <= {256, 257}
    assert np.array_equal(np.concatenate([document[:-1] for document in found]), tokens)


def test_runs_of_the_end_of_text_are_left_out_and_counted(tmp_path: Path) -> None:
    np.array([EOT, 1, 2, EOT, EOT, EOT, 3, EOT, EOT], np.uint16).tofile(tmp_path / "a.bin")
    source = open_tokens(tmp_path / "a.bin")
    found = source.read(source.shards[0])
    assert [document.tolist() for document in found.kept] == [[1, 2, EOT], [3, EOT]]  # type: ignore[union-attr]
    assert found.bad == Counter(empty=3)
    assert "has no text" in sentence(tmp_path / "a.bin", on_bad_document="stop")


def test_a_large_vocabulary_has_uint32_files(tmp_path: Path) -> None:
    large = Path(tmp_path / "large.json")
    large.write_text(large_tokenizer())
    tokenizer = open_tokenizer(str(large))
    assert tokenizer.dtype == np.int32
    ids = np.array([69_999, 5, tokenizer.eot, 7], np.uint32)
    ids.tofile(tmp_path / "raw.bin")
    header = struct.pack("<256i", 20240801, 7, len(ids), *[0] * 253)
    (tmp_path / "llm_c.bin").write_bytes(header + ids.tobytes())
    for name in ("raw.bin", "llm_c.bin"):
        found = all_documents(open_tokens(tmp_path / name, tokenizer=str(large)))
        assert [document.tolist() for document in found] == [[69_999, 5, 70_000], [7, 70_000]]
        assert found[0].dtype == np.int32


def large_tokenizer() -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({f"w{n}": n for n in range(70_000)}, unk_token="w0"))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer.to_str()


def test_mistakes_get_one_sentence(tmp_path: Path) -> None:
    np.array([7, EOT], np.uint16).tofile(tmp_path / "good.bin")
    assert "gone.bin does not exist" in sentence(tmp_path / "gone.bin")
    assert "x*.bin matches no" in sentence(tmp_path / "x*.bin")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    assert "odd.bin has 3 bytes, but a token has 2" in sentence(tmp_path / "odd.bin")
    (tmp_path / "empty.bin").write_bytes(b"")
    assert "empty.bin holds no tokens" in sentence(tmp_path / "empty.bin")
    (tmp_path / "cut.bin").write_bytes(struct.pack("<256i", 20240520, 1, 5, *[0] * 253) + b"\1\0")
    assert "cut.bin has 1026 bytes, but by its header it has 1034" in sentence(tmp_path / "cut.bin")
    (tmp_path / "old.bin").write_bytes(struct.pack("<256i", 20240520, 9, 1, *[0] * 253) + b"\1\0")
    assert "old.bin is version 9" in sentence(tmp_path / "old.bin")
    np.array([50257, 3], np.uint16).tofile(tmp_path / "large.bin")
    assert "holds token 50257, but data.tokenizer gpt2 has only 50257" in sentence(tmp_path / "large.bin")
    assert "data.tokenizer bytes has only 257" in sentence(tmp_path / "good.bin", tokenizer="bytes")


def test_a_file_that_shrinks_while_it_is_read_is_not_passed_over(tmp_path: Path) -> None:
    """Without its end the run would go on as another run."""
    nanogpt_file(tmp_path / "a.bin", TEXTS)
    sources = open_tokens(tmp_path), open_tokens(tmp_path, on_bad_document="stop")
    os.truncate(tmp_path / "a.bin", 1000)
    for source in sources:
        with pytest.raises(OSError, match=r"a\.bin had [\d,]+ bytes when the run began, and has 1,000 now"):
            source.read(source.shards[-1])


def test_little_of_a_file_of_gigabytes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    fromfile = np.fromfile

    def counted(*arguments: Any, **options: Any) -> np.ndarray:
        found = fromfile(*arguments, **options)
        read.append(found.nbytes)
        return found

    monkeypatch.setattr(np, "fromfile", counted)
    with open(tmp_path / "a.bin", "wb") as file:
        file.truncate(20 * 2**30)  # zeros that take no space on the disk
        for at in range(0, 20 * 2**30, 2**27):
            file.seek(at)
            file.write(struct.pack("<H", EOT))
    source = open_tokens(tmp_path / "a.bin")
    assert 0 < sum(read) < 2**16, "opening it"
    assert len(source.shards) == 10 * 2**30 // 2**20
    source.read(source.shards[len(source.shards) // 2])
    assert 2**20 < sum(read) < 2**24, "and reading a shard of it"


def test_a_process_that_stops_inside_reading_exits(tmp_path: Path) -> None:
    nanogpt_file(tmp_path / "a.bin", TEXTS)
    program = (
        "import sys; from data import DataConfig, open_source, open_tokenizer;"
        "from data.parallel import in_processes\n"
        "source = open_source(DataConfig(source=sys.argv[1]), open_tokenizer('gpt2'))\n"
        "source.read(source.shards[0])\n"
        "for found in in_processes(lambda shard: [source.read(shard)] * 1000, source.shards, 2):\n"
        "    sys.exit(len(found.kept) and 7)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.bin"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
