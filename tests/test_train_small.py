"""Twenty documents train, validate and go on on two ranks; and a run of an older NormLab goes on."""

import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data import DataConfig, open_data
from eval.scoring.windows import validation_set
from tests.jobs import arguments, make_job, run, run_command, steps_of, summary_of, train_main
from tests.short_lines import LANES, TEXTS, config_of, train_as_large
from training.run.reader import file_sha256, read_recipe, step_folders

STEPS = 6


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("small"), TEXTS[:20], STEPS, "bytes")


@pytest.mark.slow
def test_twenty_documents_train_validate_and_go_on_on_two_ranks(job: Path) -> None:
    whole, parts = job / "whole", job / "parts"
    result = run(arguments(job, whole, "--data.lanes", "null"), ranks=2)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("data.lanes: 16, as the source has 18 shards to train on.") == 1
    for steps in ("3", str(STEPS)):
        options = ["--data.lanes", "null", "--train.steps", steps, "--schedule.steps", str(STEPS)]
        result = run(arguments(job, parts, *options), ranks=2)
        assert result.returncode == 0, result.stderr
    assert "data.lanes" not in result.stderr, "it has them, and says it no more"
    validated = [line for line in steps_of(whole) if line[0] == "train" or line[1] == STEPS]
    assert [line for line in steps_of(parts) if line in validated] == validated
    assert read_recipe(parts)["data"]["lanes"] == summary_of(parts)["data_lanes"] == 16
    held_out = [len(text.encode()) for text in TEXTS[18:20]]
    assert validation_set(parts).bytes.tolist() == held_out
    explained = run_command(["train.py", *arguments(job, job / "none", "--explain", "--data.lanes", "null")])
    assert "in up to 64 lanes, as many as the source has shards for; packing" in explained.stdout


def with_other_data_on_rank_1(words: list[str]) -> int:
    """train.py on two hosts, of which the second has other files under the same path."""
    corpus = Path(words[words.index("--config") + 1]).with_name("corpus")
    if os.environ["RANK"] == "1":
        words = [*words, "--data.source", str(corpus.with_name("other"))]
    return train_main(words)


@pytest.mark.slow
def test_ranks_that_find_different_data_do_not_train(job: Path) -> None:
    (job / "other").mkdir()
    pq.write_table(pa.table({"text": TEXTS[20:40]}), job / "other" / "topics.parquet", row_group_size=4)
    result = run(arguments(job, job / "two_hosts"), ranks=2, main=with_other_data_on_rank_1)
    assert result.returncode == 2
    assert "error: the ranks find different data under the same data.source: give all hosts" in result.stderr
    assert not (job / "two_hosts" / "recipe.yaml").exists()


def make_older(run_dir: Path, data: DataConfig) -> None:
    """The folder and its checkpoint as an older NormLab would have left them."""
    recipe = read_recipe(run_dir)
    del recipe["data"]["validation_revision"]
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    fingerprint, older = open_data(data)[0].fingerprints
    for file in (run_dir / "summary.json", *run_dir.glob("checkpoints/*/trainer_state.json")):
        content = {
            key: value
            for key, value in json.loads(file.read_text()).items()
            if not re.match("data_(asked|lanes|revision|validation_revision)", key)
        }
        assert content["data_fingerprint"] == fingerprint
        file.write_text(json.dumps(content | {"data_fingerprint": older}))
    for checkpoint in step_folders(run_dir / "checkpoints").values():
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        state = checkpoint / "trainer_state.json"
        manifest["files"][state.name] = {"size": state.stat().st_size, "sha256": file_sha256(state)}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.slow
@pytest.mark.usefixtures("large_shards")
def test_a_run_of_an_older_normlab_goes_on_as_if_nothing_had_changed(tmp_path: Path) -> None:
    job = make_job(tmp_path, TEXTS, STEPS, "bytes")
    whole, older = job / "whole", job / "older"
    assert run(arguments(job, whole), main=train_as_large).returncode == 0
    words = ["--schedule.steps", str(STEPS)]
    assert run(arguments(job, older, *words, "--train.steps", "3"), main=train_as_large).returncode == 0
    fingerprint = summary_of(older)["data_fingerprint"]
    make_older(older, config_of(job))
    # the recipe of then said the default of then; now it says nothing
    result = run(arguments(job, older, *words, "--data.lanes", "null"), main=train_as_large)
    assert result.returncode == 0, result.stderr
    made = [line for line in steps_of(whole) if line[0] == "train"]
    assert [line for line in steps_of(older) if line[0] == "train"] == made
    assert summary_of(older)["data_fingerprint"] == fingerprint
    assert summary_of(older)["data_lanes"] == LANES
