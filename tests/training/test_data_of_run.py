"""A run stays with its data: the hub's commit, the lanes, and what an older NormLab knew it by."""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data import DataConfig, open_data
from model.errors import UserError
from tests.data.servers import COMMIT, Server, hub, serving
from training.config.recipe import FREE_TO_CHANGE, TrainConfig
from training.run.changes import check_same_run
from training.run.data_of_run import as_begun, settle_data
from training.run.folder import RunFolder
from training.run.reader import read_recipe

TEXTS = [f"document {number:04}" for number in range(40)]
SECOND, THIRD = "2" * 40, "3" * 40


def begin(run_dir: Path, data: DataConfig, say: Callable[[str], object] = print) -> dict[str, Any]:
    """What train.py does with a run's data at its start; it then counts as a run that has made a step."""
    folder = RunFolder(run_dir, rank=0)
    check_same_run(folder, {"data": data, "train": TrainConfig()}, {}, FREE_TO_CHANGE)
    folder.claim(wait_s=0)
    try:
        begun = as_begun(data, folder, say)
        corpus, validation = open_data(begun)
        settled = settle_data(data, begun, folder, corpus, validation)
        (run_dir / "recipe.yaml").write_text(yaml.safe_dump({"data": asdict(settled)}))
        (run_dir / "ds_config.json").write_text("{}")
        folder.update_summary(step=1)
        return dict(folder.summary)
    finally:
        folder._lock.release()


def begin_or_say(run_dir: Path, **options: Any) -> dict[str, Any]:
    """Runs in a process of its own, where `HF_ENDPOINT` was the server at import."""
    said: list[str] = []
    data = DataConfig(
        source="org/name",
        validation_source="hf://datasets/org/held/held.parquet",
        tokenizer="bytes",
        **options,
    )
    try:
        summary = begin(run_dir, data, said.append)
    except UserError as error:
        return {"error": str(error)}
    return summary | {"said": said, "recipe": read_recipe(run_dir)["data"]}


def parquet_of(folder: Path, texts: list[str]) -> bytes:
    pq.write_table(pa.table({"text": texts}), folder / "written.parquet", compression="none")
    return (folder / "written.parquet").read_bytes()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def test_a_run_stays_with_the_commit_that_it_began_with(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, edited = (parquet_of(tmp_path, texts) for texts in (TEXTS, [*TEXTS[1:], "edited document"[:13]]))
    held = {"held.parquet": parquet_of(tmp_path, ["held out"])}
    hub(server, "org/name", {"a.parquet": first}, {"default": "*.parquet"})
    hub(server, "org/held", held, {"default": "*.parquet"})
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("NORMLAB_HASH_DIR", str(tmp_path / "hashes"))
    runs = tmp_path / "runs"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:

        def begun(name: str, **options: Any) -> dict[str, Any]:
            return pool.submit(begin_or_say, runs / name, **options).result(timeout=120)

        one = begun("study/one")
        assert (one["data_revision"], one["data_validation_revision"]) == (COMMIT, COMMIT)
        assert (one["recipe"]["revision"], one["recipe"]["validation_revision"]) == (COMMIT, COMMIT)
        named = begun("named/one", revision="main")

        hub(
            server,
            "org/name",
            {"a.parquet": first, "b.txt": b"no data"},
            {"default": "*.parquet"},
            SECOND,
        )
        hub(server, "org/held", held | {"b.parquet": edited}, {"default": "*.parquet"}, SECOND)
        unchanged = begun("after/one")
        assert unchanged["data_revision"] == unchanged["data_validation_revision"] == SECOND
        for key in ("data_fingerprint", "val_fingerprint"):
            assert unchanged[key] == one[key], "a commit that changes no file changes nothing"

        hub(server, "org/name", {"a.parquet": edited}, {"default": "*.parquet"}, THIRD)
        assert begun("study/one")["recipe"] == one["recipe"]
        assert begun("named/one", revision="main")["recipe"] == named["recipe"], "main, as it was"
        beside = begun("study/two")
        assert beside["recipe"] == one["recipe"] and beside["data_fingerprint"] == one["data_fingerprint"]
        assert (
            f"the hub's commit {COMMIT} is read, as by the other runs in {runs / 'study'}"
            in beside["said"][0]
        )
        new = begun("new/one")
        assert new["data_revision"] == THIRD and new["data_fingerprint"] != one["data_fingerprint"]
        error = begun("study/one", revision=THIRD)["error"]
        assert error.startswith(f"{runs / 'study' / 'one'} began on other data than its recipe finds now")

    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "a.parquet").write_bytes(first)
    (tmp_path / "held.parquet").write_bytes(held["held.parquet"])
    mirror = DataConfig(
        source=str(tmp_path / "mirror"), validation_source=str(tmp_path / "held.parquet"), tokenizer="bytes"
    )
    assert begin(runs / "mirror" / "one", mirror)["data_fingerprint"] == one["data_fingerprint"]


def test_the_lanes_of_a_run_stay_whatever_its_command_leaves_open(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    parquet_of(tmp_path / "in", TEXTS[:20])
    source, run_dir = str(tmp_path / "in"), tmp_path / "run"
    assert begin(run_dir, DataConfig(source=source, lanes=8))["data_lanes"] == 8
    begin(run_dir, DataConfig(source=source))
    assert read_recipe(run_dir)["data"]["lanes"] == 8
    with pytest.raises(UserError, match=r"with data\.lanes = 8, but 16 is asked for"):
        begin(run_dir, DataConfig(source=source, lanes=16))
    begin(tmp_path / "open", DataConfig(source=source))
    assert read_recipe(tmp_path / "open")["data"]["lanes"] == 16


def make_older(run_dir: Path, data: DataConfig) -> None:
    """The folder as an older NormLab would have left it."""
    corpus, _ = open_data(data)
    recipe = read_recipe(run_dir)
    del recipe["data"]["validation_revision"]
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    summary = json.loads((run_dir / "summary.json").read_text())
    kept = {key: summary[key] for key in ("val_fingerprint", "step")}
    kept["data_fingerprint"] = corpus.fingerprints[1]
    (run_dir / "summary.json").write_text(json.dumps(kept))
    (run_dir / "environment.json").write_text(json.dumps({"git_commit": "0123456789abcdef"}))


@pytest.mark.usefixtures("large_shards")
def test_a_run_of_an_older_normlab_goes_on_and_gets_the_new_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in" / "a.parquet", row_group_size=1)
    data, run_dir = DataConfig(source=str(tmp_path / "in"), lanes=4), tmp_path / "run"
    before = begin(run_dir, data)
    make_older(run_dir, data)
    again = begin(run_dir, DataConfig(source=data.source))
    assert again["data_fingerprint"] == before["data_fingerprint"] and again["data_lanes"] == 4


def test_a_run_of_an_older_normlab_in_other_shards_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in" / "a.parquet", row_group_size=5)
    data, run_dir = DataConfig(source=str(tmp_path / "in"), lanes=4), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("data.sources.documents.SHARDS", 1e-3)
        begin(run_dir, data)
        make_older(run_dir, data)
    summary = (run_dir / "summary.json").read_text()
    with pytest.raises(UserError) as caught:
        begin(run_dir, data)
    assert str(caught.value) == (
        f"{run_dir} was begun by an older NormLab, on other data than its recipe finds now, or on the "
        "same in other shards: finish it with git checkout 0123456789ab, or choose another --run_dir"
    )
    assert (run_dir / "summary.json").read_text() == summary
