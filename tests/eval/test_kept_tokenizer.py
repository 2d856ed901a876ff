"""A run's tokenizer.json: kept in its folder, pinned in its summary, and read from there afterwards."""

import hashlib
import json
import string
from pathlib import Path

import pytest
import tokenizers
import yaml

from data import open_tokenizer
from eval.export import export
from eval.generate import tokenizer_of
from eval.hf_tokenizer import read_tokenizer_of
from eval.scoring.windows import validation_set
from model import GPTConfig
from model.errors import UserError
from tests.jobs import arguments, make_job, run
from tests.short_lines import TEXTS
from tests.tiny import TINY
from tests.training.test_start import check, make_run
from training.run.reader import read_summary
from training.run.tokenizer import read_tokenizer, tokenizer_note

PROBE = "the topic of a line"


def write_tokenizer(file: Path, characters: str) -> None:
    vocabulary = {character: number for number, character in enumerate(["<|endoftext|>", *characters])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.save(str(file))


def ids_of(characters: str) -> list[int]:
    return [characters.index(character) + 1 for character in PROBE]


@pytest.fixture
def fresh_tokenizers():
    """A command opens a tokenizer once; here several commands run in one process."""
    open_tokenizer.cache_clear()
    yield
    open_tokenizer.cache_clear()


def test_what_opens_a_run_reads_text_with_the_tokenizer_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_tokenizers: None
) -> None:
    file = tmp_path / "tok.json"
    write_tokenizer(file, string.printable)
    first = file.read_bytes()
    job = make_job(tmp_path, TEXTS, 3, str(file))
    result = run(arguments(job, tmp_path / "run", "--train.steps", "1", "--schedule.steps", "3"))
    assert result.returncode == 0, result.stderr
    summary = read_summary(tmp_path / "run")
    assert summary["tokenizer_fingerprint"] == hashlib.sha256(first).hexdigest()

    write_tokenizer(file, string.printable[::-1])
    run_dir = (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir(run_dir)
    assert (run_dir / "tokenizer" / "tokenizer.json").read_bytes() == first
    for source in (run_dir, Path()):
        tokenizer = read_tokenizer(source)
        assert tokenizer.encode(PROBE).tolist() == ids_of(string.printable) != ids_of(string.printable[::-1])
        assert tokenizer.name == str(file), "what runs are grouped by stays what the recipe says"
        assert tokenizer_note(source) is None
    assert tokenizer_of(run_dir).encode(PROBE).tolist() == ids_of(string.printable)
    assert validation_set(run_dir).fingerprint == summary["val_fingerprint"]
    export(run_dir, tmp_path / "exported")
    exported = read_tokenizer_of(tmp_path / "exported")
    assert exported is not None and exported.encode(PROBE).tolist() == ids_of(string.printable)


def test_another_tokenizer_than_the_runs_is_refused(tmp_path: Path, fresh_tokenizers: None) -> None:
    file, kept = tmp_path / "tok.json", tmp_path / "tokenizer" / "tokenizer.json"
    write_tokenizer(file, string.printable)
    recipe = {"data": {"tokenizer": str(file)}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert read_tokenizer(tmp_path).encode(PROBE).tolist() == ids_of(string.printable)
    assert f"{file} is read as it lies there now" in (tokenizer_note(tmp_path) or "")

    fingerprint = hashlib.sha256(b"another").hexdigest()
    (tmp_path / "summary.json").write_text(json.dumps({"tokenizer_fingerprint": fingerprint}))
    with pytest.raises(
        UserError, match=rf"^{file} is not the tokenizer that {tmp_path} was trained with \(its"
    ):
        read_tokenizer(tmp_path)
    kept.parent.mkdir()
    write_tokenizer(kept, string.printable[::-1])
    with pytest.raises(
        UserError, match=rf"^{kept} is not the tokenizer that {tmp_path} was trained with \(its"
    ):
        read_tokenizer(tmp_path)


def test_weights_are_not_taken_from_a_run_with_another_tokenizer(tmp_path: Path) -> None:
    shape = GPTConfig(**TINY)
    source, ours = make_run(tmp_path / "run", shape), tmp_path / "ours.json"
    recipe = yaml.safe_load((source / "recipe.yaml").read_text()) | {"data": {"tokenizer": "/gone/tok.json"}}
    (source / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_tokenizer(ours, string.printable)
    check(source, shape, tokenizer=str(ours))  # nothing is known of what it had
    for content, is_same in ((ours.read_bytes(), True), (b"another", False)):
        facts = {"tokenizer_fingerprint": hashlib.sha256(content).hexdigest()}
        (source / "summary.json").write_text(json.dumps(facts))
        if is_same:
            check(source, shape, tokenizer=str(ours))
            continue
        with pytest.raises(
            UserError, match=r"a run whose tokenizer\.json is another than .*ours\.json: give"
        ):
            check(source, shape, tokenizer=str(ours))
