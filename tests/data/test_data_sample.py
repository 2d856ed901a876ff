"""The embedded sample: English from source files, without near-duplicates, in FineWeb's schema."""

import json
import multiprocessing
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import MOST_LANES, DataConfig, build_sample, gpt2_encoding, open_source, open_tokenizer
from data.sample.build import is_validation, lastword_passages, near_duplicate
from data.sample.docstrings import docstrings, prose, shingles
from model.errors import UserError

FINEWEB = {
    "text": pa.string(),
    "id": pa.string(),
    "dump": pa.string(),
    "url": pa.string(),
    "date": pa.string(),
    "file_path": pa.string(),
    "language": pa.string(),
    "language_score": pa.float64(),
    "token_count": pa.int64(),
}
DOCSTRING = """Stretch the *rope* until the knot at its end gives way.

A rope of :class:`~ropes.Rope` is stretched slowly, so that the `knot` has the time to loosen first::

    stretch(rope, force=3)

Parameters
----------
force : float, optional
    The force that is applied to the end of the rope.
speed (int): How fast the rope is to be pulled, in
    metres for each second.

>>> stretch(rope)
3.0

Returns:
    A new rope that is longer than the old one was.
"""


def sentences(number: int) -> str:
    """A paragraph that shares no run of eight words with that of another number."""
    return "\n".join(
        f"The {number}-{line} river of valley {number} carries the water {line * 7 + number} that it is "
        f"given to the lake {number * 31 + line} and is there by the evening."
        for line in range(4)
    )


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    """A package of 200 files, one of them broken, one of them warned about, one of them a copy."""
    root = tmp_path / "rivers"
    (root / "tests").mkdir(parents=True)
    for number in range(200):
        words = ["brook", "creek", "stream", "torrent", "canal", "delta", "spring"]
        names = " ".join(words[(number >> shift) % 7] for shift in range(0, 8, 2))
        text = sentences(number).replace(f"{number}-", names + " ").replace("valley", names)
        (root / f"file_{number:03}.py").write_text(f'"""{text}\n\n{DOCSTRING if number == 0 else ""}"""\n')
    (root / "copy.py").write_text((root / "file_007.py").read_text())
    (root / "broken.py").write_text('"""Text that is long enough to be read as a docstring."""\ndef (:\n')
    (root / "warned.py").write_text('"""Short."""\nassert (1, "always true") and "\\d" is "\\d"\n')
    (root / "tests" / "test_file.py").write_text((root / "file_009.py").read_text().replace("river", "exam"))
    return {"rivers": root}


def rows(folder: Path, part: str) -> list[dict[str, object]]:
    return pq.read_table(folder / f"{part}.parquet").to_pylist()


def test_code_tables_and_markup_are_left_out_of_prose() -> None:
    assert prose(DOCSTRING).split("\n") == [
        "Stretch the *rope* until the knot at its end gives way.",
        "A rope of ropes.Rope is stretched slowly, so that the knot has the time to loosen first:",
        "The force that is applied to the end of the rope.",
        "How fast the rope is to be pulled, in metres for each second.",
        "A new rope that is longer than the old one was.",
    ]
    assert prose("x = 3; y = x + 4\nfoo(bar=baz)\n\n0.1 0.2 0.3") == ""


def test_docstrings_come_in_source_order_without_running_the_file(tmp_path: Path) -> None:
    filler = "and this goes on and on so that it is long enough to be taken for documentation by readers " * 2
    path = tmp_path / "module.py"
    path.write_text(
        f'"""First {filler}"""\nclass A:\n    """Second {filler}"""\n'
        f'    def f(self):\n        """Third {filler}"""\n'
        f'add_docstr(A, """Fourth {filler}""")\nraise SystemExit\n'
    )
    assert [text.split()[0] for text in docstrings(path)] == ["First", "Second", "Third", "Fourth"]


def test_a_text_is_a_near_duplicate_when_more_than_half_was_seen() -> None:
    words = [f"word{number}" for number in range(100)]
    seen: set[int] = set()
    assert not near_duplicate(shingles(" ".join(words)), seen)
    assert near_duplicate(shingles(" ".join(words)), seen)
    assert near_duplicate(shingles(" ".join(words).upper().replace(" ", ", ")), seen)
    half = [f"other{number}" for number in range(40)]
    assert near_duplicate(shingles(" ".join(words[:60] + half)), seen)
    more_new = [f"another{number}" for number in range(60)]
    assert not near_duplicate(shingles(" ".join(words[:50] + more_new)), seen)


def test_the_sample_has_finewebs_nine_columns(tmp_path: Path, roots: dict[str, Path]) -> None:
    folder = build_sample(tmp_path / "sample", roots)
    for part in ("train", "validation"):
        schema = pq.read_schema(folder / f"{part}.parquet")
        assert dict(zip(schema.names, schema.types, strict=True)) == FINEWEB
        for row in rows(folder, part):
            assert row["token_count"] == len(gpt2_encoding().encode_ordinary(str(row["text"])))
            assert row["language"] == "en" and 0.5 < float(str(row["language_score"])) <= 1


def test_training_and_validation_share_no_document(tmp_path: Path, roots: dict[str, Path]) -> None:
    folder = build_sample(tmp_path / "sample", roots)
    train, validation = rows(folder, "train"), rows(folder, "validation")
    assert train and validation
    for column in ("id", "text", "file_path"):
        assert not {row[column] for row in train} & {row[column] for row in validation}
    assert len({row["id"] for row in train + validation}) == len(train) + len(validation)
    assert all(is_validation(str(row["file_path"])) for row in validation)


def test_copies_tests_and_broken_files_are_left_out(
    tmp_path: Path, roots: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = build_sample(tmp_path / "sample", roots)
    paths = {str(row["file_path"]) for part in ("train", "validation") for row in rows(folder, part)}
    assert len({"rivers/copy.py", "rivers/file_007.py"} & paths) == 1
    assert not paths & {"rivers/broken.py", "rivers/warned.py", "rivers/tests/test_file.py"}
    assert "Warning" not in capfd.readouterr().err


def test_building_again_reuses_what_is_there_and_repairs_what_is_not(
    tmp_path: Path, roots: dict[str, Path]
) -> None:
    folder = build_sample(tmp_path / "sample", roots)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert build_sample(folder, {}) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    (folder / "train.parquet").write_bytes(b"cut short")
    build_sample(folder, roots)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    (folder / "sample.json").unlink()
    build_sample(folder, roots)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content


def test_the_manifest_counts_what_the_files_hold(tmp_path: Path, roots: dict[str, Path]) -> None:
    folder = build_sample(tmp_path / "sample", roots)
    manifest = json.loads((folder / "sample.json").read_text())
    for part in ("train", "validation"):
        assert manifest["documents"][part] == len(rows(folder, part))
        assert manifest["tokens"][part] == sum(int(str(row["token_count"])) for row in rows(folder, part))


def test_two_processes_may_build_at_once(tmp_path: Path, roots: dict[str, Path]) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=build_sample, args=(tmp_path / "sample", roots)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    alone = build_sample(tmp_path / "alone", roots)
    for name in ("train.parquet", "validation.parquet", "lastword.jsonl", "sample.json"):
        assert (tmp_path / "sample" / name).read_bytes() == (alone / name).read_bytes()


def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="set NORMLAB_SAMPLE_DIR to a folder that can be written"):
        build_sample(tmp_path / "sample", {})


def test_lastword_passages_end_in_a_word_that_came_before() -> None:
    text = (
        "The river carries water to the lake in the valley, where the people of the village wait for it. "
        "They have waited for most of the year, and some of them have begun to doubt that it will come. "
        "In the evening it comes at last, and they all run down the hill together to look at the lake. "
        "Then it is night."
    )
    (passage,) = lastword_passages([text])
    assert passage.endswith("to look at the lake")
    assert lastword_passages(["Too short to be a passage, too short."]) == []


@pytest.mark.slow
def test_the_installed_sample_is_what_it_says() -> None:
    """Builds the whole sample where it is kept unless it is there: about a minute, once per machine."""
    train = open_source(DataConfig(), open_tokenizer("gpt2"))
    validation = open_source(DataConfig(split="validation"), open_tokenizer("gpt2"))
    manifest = json.loads((Path(next(iter(train.file_sizes))).parent / "sample.json").read_text())
    assert len(train.shards) >= MOST_LANES
    assert manifest["tokens"]["train"] >= 4_000_000
    assert 90_000 <= manifest["tokens"]["validation"] <= 140_000
    texts = [
        {text for shard in source.shards for text in source.read(shard).kept}
        for source in (train, validation)
    ]
    assert len(texts[0]) == manifest["documents"]["train"] and not texts[0] & texts[1]
    passages = (Path(next(iter(train.file_sizes))).parent / "lastword.jsonl").read_text().splitlines()
    assert len(passages) >= 300
    for line in passages:
        context, target = json.loads(line)["text"].rsplit(" ", 1)
        assert re.fullmatch("[A-Za-z]{3,}", target) and re.search(rf"\b{target}\b", context)
        assert len(context.split()) >= 30
