"""A .bin file of other numbers than expected is refused with what mends it; real tokens never are."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from data import DataConfig, Source, gpt2_encoding, open_data, open_source, open_tokenizer
from data.sources.local import number_problem
from model.errors import UserError
from tests.data.test_data_token_shards import large_tokenizer
from tests.data.token_files import EOT

EXPECTED = np.dtype("<u2")
PROSE = "It was a long way to the sea, and {} of them had {} reasons to walk it twice; the others did not."


def tokens_of_text(documents: int = 400) -> np.ndarray:
    texts = [PROSE.format(n, n * n % 97) for n in range(documents)]
    encoded = [[*gpt2_encoding().encode_ordinary(text), EOT] for text in texts]
    return np.array([token for document in encoded for token in document])


def opened(path: Path, **options: str) -> Source:
    config = DataConfig(source=str(path), **options)  # type: ignore[arg-type]
    return open_source(config, open_tokenizer(config.tokenizer))


@pytest.mark.parametrize(
    "kind", ["uint32", "int32", "int64", ">u4", ">i8", ">u2", "float32", "float64", ">f4", "float16"]
)
@pytest.mark.parametrize("documents", [1, 400])
def test_other_numbers_are_refused_with_the_line_that_mends_them(
    tmp_path: Path, kind: str, documents: int
) -> None:
    if kind in ("float16", ">u2"):
        documents = 400  # a handful of them proves nothing
    tokens = tokens_of_text(documents)
    if kind == "float16":
        tokens = tokens % 2048  # it holds no other integers exactly
    path = tmp_path / "train.bin"
    tokens.astype(kind).tofile(path)
    with pytest.raises(UserError, match=r"train\.bin holds .*, not uint16") as caught:
        opened(path)
    found = re.search(
        r"`numpy\.fromfile\(f, '(.*)'\)\.astype\('uint16'\)\.tofile\(f\)` mends", str(caught.value)
    )
    assert found is not None
    mended = np.fromfile(path, found[1]).astype("uint16")
    assert np.array_equal(mended, tokens)
    mended.tofile(path)
    assert opened(path).holds_tokens


@pytest.mark.parametrize("kind", ["uint32", "int64"])
def test_numbers_of_a_large_vocabulary_and_padding_are_seen(tmp_path: Path, kind: str) -> None:
    tokens = np.random.default_rng(0).zipf(1.3, 20_000) % 100_000
    tokens[5_000:] = 0
    tokens[0] = 99_999
    tokens.astype(kind).tofile(tmp_path / "a.bin")
    with pytest.raises(UserError, match=f"{kind}.*, not uint16, and tokens up to 99999: name the tokenizer"):
        opened(tmp_path / "a.bin")


def test_wide_numbers_are_seen_where_uint32_is_expected(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_text(large_tokenizer())
    tokens = np.random.default_rng(0).integers(0, 70_000, 5_000)
    tokens.astype("<u4").tofile(tmp_path / "right.bin")
    assert opened(tmp_path / "right.bin", tokenizer=f"{tmp_path}/large.json").holds_tokens
    tokens.astype("<i8").tofile(tmp_path / "wide.bin")
    with pytest.raises(UserError, match=r"holds int64, not uint32: .*astype\('uint32'\)"):
        opened(tmp_path / "wide.bin", tokenizer=f"{tmp_path}/large.json")
    (tokens % 50_000).astype("<u2").tofile(tmp_path / "narrow.bin")
    with pytest.raises(UserError, match=r"but data\.tokenizer .* has only 70001"):
        opened(tmp_path / "narrow.bin", tokenizer=f"{tmp_path}/large.json")


def real_files() -> dict[str, np.ndarray]:
    text = tokens_of_text()
    draw = np.random.default_rng(1)
    exclamations = gpt2_encoding().encode_ordinary("wow!" * 3_000)
    assert exclamations[1::2].count(0) > 1_000, "every second token of it is 0"
    return {
        "text": text,
        "padded": np.concatenate([text, np.zeros(500_000, np.int64)]),
        "padded in front": np.concatenate([np.zeros(500_000, np.int64), text, np.zeros(9, np.int64)]),
        "every second token 0 in a half of it": np.concatenate([np.stack([text, text * 0]).T.ravel(), text]),
        "exclamations alone": np.array(exclamations),
        "zeros alone": np.zeros(10_000, np.int64),
        "one token": np.full(10_000, 30_000),
        "drawn": draw.integers(0, EOT, 10_000),
        "rows of a table": np.array(gpt2_encoding().encode_ordinary("0,1,0,0,1,1," * 2_000)),
        "numbers": np.array(gpt2_encoding().encode_ordinary(" ".join(map(str, range(20_000))))),
        "Chinese": np.array(gpt2_encoding().encode_ordinary("人人生而自由在尊严和权利上一律平等。" * 300)),
        "bytes": np.frombuffer(PROSE.encode() * 100, np.uint8).astype(np.int64),
        "bytes of a file of zeros and ones": np.array([*b"0\0" * 5_000]),
        "few": np.array([5, 0, 7, 0, 9, 0]),
    }


@pytest.mark.parametrize("name", list(real_files()))
def test_real_files_of_uint16_are_never_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.bin"
    for tokens in (real_files()[name], real_files()[name][:-1], real_files()[name][1:]):
        tokens.astype("uint16").tofile(path)
        assert number_problem(str(path), EXPECTED) is None


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (PROSE.encode() * 40, "holds text, not tokens"),
        ("Ein längerer Satz über Öl.\n".encode() * 20, "holds text, not tokens"),
        (b"PK\x03\x04" + bytes(500), "is a zip archive, as torch.save writes it"),
        (b"PAR1" + bytes(500), "is a parquet file, name it .parquet"),
    ],
)
def test_files_of_something_else_are_named(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UserError, match=what):
        opened(tmp_path / "a.bin")


def test_a_numpy_file_is_told_how_to_lose_its_header(tmp_path: Path) -> None:
    with (tmp_path / "a.bin").open("wb") as file:
        np.save(file, tokens_of_text().astype("uint16"))
    with pytest.raises(UserError, match=r"`numpy\.load\(f\)\.astype\('uint16'\)\.tofile\(f\)`"):
        opened(tmp_path / "a.bin")


def test_a_header_says_the_kind_of_the_numbers(tmp_path: Path) -> None:
    tokens = tokens_of_text().astype("uint16")
    header = struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253)
    (tmp_path / "a.bin").write_bytes(header + tokens.tobytes())
    assert opened(tmp_path / "a.bin").holds_tokens


def test_a_small_file_of_tokens_trains_on_two_lanes(tmp_path: Path) -> None:
    tokens_of_text(60).astype("uint16").tofile(tmp_path / "train.bin")
    config = DataConfig(source=str(tmp_path / "train.bin"), lanes=2)
    corpus, validation = open_data(config)
    assert len(corpus.shards) >= 2 and len(validation.tokens) > 1
