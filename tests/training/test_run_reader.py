"""Reading a run folder: names, completeness, and one sentence where a file is not what it should be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model.errors import UserError
from training.checkpoints.found import complete_checkpoints, find_checkpoint
from training.engine.weights import load_model
from training.run.reader import (
    checkpoint_name,
    checkpoint_step,
    file_sha256,
    last_evaluated_step,
    read_metrics,
    read_recipe,
    read_results,
    read_summary,
)

ROOT = Path(__file__).resolve().parents[2]


def write_checkpoint(run_dir: Path, step: int) -> Path:
    """A checkpoint of one file."""
    folder = run_dir / "checkpoints" / checkpoint_name(step)
    folder.mkdir(parents=True)
    file = folder / "model.pt"
    file.write_bytes(b"weights")
    entry = {"size": file.stat().st_size, "sha256": file_sha256(file)}
    (folder / "manifest.json").write_text(json.dumps({"step": step, "files": {"model.pt": entry}}))
    return folder


@pytest.mark.parametrize("step", [0, 7, 99_999_999, 100_000_000])
def test_a_name_gives_its_step_back(step: int) -> None:
    assert checkpoint_step(Path("anywhere", checkpoint_name(step))) == step


@pytest.mark.parametrize("name", ["step_7", "step_", "step_0000000x", ".step_00000007.partial", "latest"])
def test_any_other_name_has_no_step(name: str) -> None:
    assert checkpoint_step(Path(name)) is None


def test_steps_are_in_order_however_many_digits_they_have(tmp_path: Path) -> None:
    for step in (100_000_000, 3, 99_999_999):
        write_checkpoint(tmp_path, step)
    assert list(complete_checkpoints(tmp_path)) == [3, 99_999_999, 100_000_000]
    assert find_checkpoint(tmp_path) == (tmp_path / "checkpoints" / "step_100000000", 100_000_000)


def test_a_checkpoint_that_is_not_all_there_does_not_count(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path, 1) / "model.pt").unlink()
    (write_checkpoint(tmp_path, 2) / "model.pt").write_bytes(b"longer weights")
    (write_checkpoint(tmp_path, 3) / "manifest.json").write_text('{"files": {"model.pt"')
    (write_checkpoint(tmp_path, 4) / "manifest.json").write_text('{"files": {"model.pt": {"size": 7}}}')
    (tmp_path / "checkpoints" / "step_00000005").mkdir()
    assert complete_checkpoints(tmp_path) == {}
    with pytest.raises(UserError, match="has no checkpoint that is whole: step 5 is damaged"):
        find_checkpoint(tmp_path)


def test_weights_that_changed_on_the_disk_are_not_evaluated(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 7)
    (folder / "model.pt").write_bytes(b"weighty")
    with pytest.raises(UserError) as caught:
        load_model(tmp_path)
    damaged = "has no checkpoint that is whole: step 7 is damaged (model.pt has another checksum)"
    assert str(caught.value) == f"{tmp_path} {damaged}"
    with pytest.raises(UserError) as caught:
        load_model(tmp_path, 7)
    asked = f"{folder} is damaged (model.pt has another checksum): no other is there"
    assert str(caught.value) == asked


def test_metrics_come_without_a_last_line_that_was_cut(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{line(1)}\n{line(2)}\n{{"step": 3, "lo')
    said: list[str] = []
    assert [values["step"] for values in read_metrics(tmp_path, said.append)] == [1, 2]
    assert read_metrics(tmp_path / "not there", said.append) == []
    assert said == []


def line(step: int) -> str:
    return json.dumps({"kind": "train", "step": step, "loss": 1.0})


GARBAGE = [b"nonsense", b"[1]", b"\x00\x00\xff", b"{}", b'{"kind": "train", "step": "2"}', b"[" * 9999, b"7"]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_a_broken_line_amid_the_metrics_is_lost_alone_and_named(tmp_path: Path, garbage: bytes) -> None:
    lines = [line(1).encode(), garbage, line(3).encode(), garbage, line(5).encode(), b""]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    said: list[str] = []
    assert [values["step"] for values in read_metrics(tmp_path, said.append)] == [1, 3, 5]
    assert len(said) == 1 and "metrics.jsonl: lines 2, 4 are no JSON of a step" in said[0]


def test_results_are_those_of_the_last_evaluated_step(tmp_path: Path) -> None:
    assert last_evaluated_step(tmp_path) is None and read_results(tmp_path, 5) == {}
    for step in (5, 10):
        folder = tmp_path / "eval" / checkpoint_name(step)
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"results": {}, "normlab": {"step": step}}))
    (tmp_path / "eval" / checkpoint_name(15)).mkdir()  # validated, not evaluated
    assert last_evaluated_step(tmp_path) == 10
    assert read_results(tmp_path, 10)["normlab"] == {"step": 10}


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "it holds no summary.json"), ("{", "is not valid JSON"), ("[1]", "does not hold a JSON object")],
)
def test_a_summary_that_is_none_gets_one_sentence(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=words):
        read_summary(tmp_path)
    with pytest.raises(UserError, match=r"there is no run folder .*nowhere"):
        read_summary(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "words"), [("model: {", "is not valid YAML"), ("", "does not hold a recipe")]
)
def test_a_recipe_that_is_none_gets_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(UserError, match=words):
        read_recipe(tmp_path)


def test_reading_needs_neither_torch_nor_pandas() -> None:
    code = "import sys, training.run.reader; print(*sys.modules.keys() & {'torch', 'pandas', 'deepspeed'})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
