"""The figures of a source, against counts made by hand."""

import json
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import DataConfig, open_source, open_tokenizer
from data.stats import main, measure, to_text

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"
LONG = "word " * 400
ROWS = ["abc", "abc", None, "a-----b", "Ünï", LONG, "abc", "", "zz"]
"""In bytes: 3, 3, 7, 5, 2000, 3 and 2 tokens, and one `eot` each."""


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"text": pa.array(ROWS, pa.string())}), tmp_path / "a.parquet", row_group_size=2)
    return tmp_path / "a.parquet"


def figures(where: Path, tokenizer: str = "bytes", **options: int) -> dict:
    config = DataConfig(source=str(where), tokenizer=tokenizer)
    return measure(open_source(config, open_tokenizer(tokenizer)), open_tokenizer(tokenizer), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.usefixtures("large_shards")
def test_every_figure_is_what_counting_by_hand_gives(parquet: Path, workers: int) -> None:
    found = figures(parquet, workers=workers)
    texts = [text for text in ROWS if text]
    lengths = [len(text.encode()) + 1 for text in texts]
    assert lengths == [4, 4, 8, 6, 2001, 4, 3]
    assert (found["documents"], found["tokens"], found["text_bytes"]) == (7, 2030, 2023)
    assert found["bytes_per_token"] == 2023 / 2030
    assert found["tokens_per_document"] == {
        "mean": statistics.mean(lengths),
        "median": statistics.median(lengths),
        "longest": 2001,
    }
    assert found["longer_than_1024_tokens"] == {"share_of_documents": 1 / 7, "share_of_tokens": 2001 / 2030}
    assert found["most_common_token"]["text"] in "word " and Counter("".join(texts))["w"] == 400
    assert found["most_common_token"]["share_of_tokens"] == 400 / 2030
    assert found["longest_run"] == {
        "length": 5,
        "id": ord("-"),
        "text": "-",
        "path": str(parquet),
        "group": 1,
        "first_row": 0,
        "document": 0,
    }
    assert found["duplicate_documents"] == {"count": 2, "share": pytest.approx(2 / 7)}
    assert found["bad_documents"] == {"empty": 2} and found["end_of_text_runs"] == 0
    assert "padding?" not in to_text(found)


def test_tokens_have_the_figures_of_their_texts(parquet: Path, tmp_path: Path) -> None:
    tokenizer = open_tokenizer("gpt2")
    stream = [tokenizer.encode_document(text) for text in ROWS if text]
    np.concatenate(stream).tofile(tmp_path / "train.bin")
    texts, tokens = figures(parquet, "gpt2"), figures(tmp_path / "train.bin", "gpt2")
    assert texts.pop("bad_documents") == {"empty": 2} and tokens.pop("bad_documents") == {}
    for key in texts.keys() - {"source", "longest_run"}:
        assert tokens[key] == texts[key], key
    assert tokens["longest_run"]["length"] == texts["longest_run"]["length"]


def test_padding_shows(tmp_path: Path) -> None:
    text = np.random.default_rng(0).integers(0, 50000, 5000)
    np.concatenate([text, [50256] * 50, [220] * 3000, [50256]]).astype(np.uint16).tofile(tmp_path / "a.bin")
    found = figures(tmp_path / "a.bin", "gpt2")
    assert found["longest_run"]["length"] >= 3000 and found["longest_run"]["text"] == " "
    assert found["end_of_text_runs"] == 49
    marked = [line.partition("  ")[0] for line in to_text(found).splitlines() if line.endswith("padding?")]
    assert marked == ["most common token", "longest run", "end-of-text runs"]


def test_a_sample_of_documents_is_taken_from_all_over_the_source(tmp_path: Path) -> None:
    rows = [f"{n:05d}" for n in range(5000)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", row_group_size=50)
    for documents in (1, 7, 64, 999, 5000, 9000):
        found = figures(tmp_path / "a.parquet", documents=documents, workers=2)
        assert found["documents"] == min(documents, 5000)
        assert found["duplicate_documents"]["count"] == 0


def test_the_command_prints_and_writes_the_same_figures(
    parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stats.json"
    assert main([str(parquet), "--data.tokenizer", "bytes", "--json", str(out), "--workers", "2"]) == 0
    written = json.loads(out.read_text())
    assert written == figures(parquet)
    assert capsys.readouterr().out == to_text(written)


def test_the_command_answers_mistakes_with_one_sentence(
    parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sentence(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        *bar, line = captured.err.splitlines()
        assert captured.out == "" and line.startswith("error: ") and all("stats:" in one for one in bar[1:])
        return line

    assert "SOURCE" in sentence()
    assert "--data.sed" in sentence(parquet, "--data.sed", "x")
    assert "must be an integer of 1 or more" in sentence(parquet, "--documents", "0")
    assert "data.max_document_bytes is 0" in sentence(parquet, "--data.max_document_bytes", "0")
    assert "does not exist" in sentence(tmp_path / "nothing.parquet")
    assert "there is no folder" in sentence(parquet, "--json", tmp_path / "no" / "a.json")
    assert "data.on_bad_document" in sentence(parquet, "--data.on_bad_document", "stop")
    assert "has the columns" in sentence(parquet, "--data.text_column", "page")


def test_the_command_says_what_a_user_should_know(
    tmp_path: Path, parquet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.parquet").write_bytes(b"PAR1 is no parquet file PAR1")
    (tmp_path / "folder").mkdir()
    assert main([str(tmp_path), "--data.tokenizer", "bytes", "--json", str(tmp_path / "folder")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(
        f"note: data.source: {tmp_path}/b.parquet is not a readable parquet file ("
    )
    assert captured.out.startswith("documents            7\n"), "what was counted is not lost"

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data.stats.measure", interrupted)
    assert main([str(parquet)]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data")
def test_real_prose_looks_like_no_padding() -> None:
    found = figures(SHARED_DATA / "fineweb" / "fineweb_20rows.parquet", "gpt2")
    rows = pq.read_table(SHARED_DATA / "fineweb" / "fineweb_20rows.parquet", columns=["text"])[
        "text"
    ].to_pylist()
    encode = open_tokenizer("gpt2").encode
    assert found["documents"] == 20 and found["tokens"] == sum(len(encode(text)) + 1 for text in rows)
    assert "padding?" not in to_text(found)
