"""A study read back from its folder alone."""

import json
import math
from pathlib import Path

import pytest

from eval.page.live.sources import is_study
from eval.studies.findings.reading import read_study_record
from eval.studies.findings.tables import foretold_sentence, verdict_cells
from model.errors import UserError
from training.config.recipe import Recipe

from .studied import THREE_SIZES, TWO_RATES, Trainer, gain, make_files, noise, results_of, run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_files(tmp_path)


def study_of(folder: Path) -> Path:
    return folder / "runs" / "studies" / "study"


def ladder(recipe: Recipe, peak: float) -> float:
    return 2 + 30 / recipe.model.n_embd**0.7 + noise(recipe) - 0.1 * (recipe.model.norm == "rmsnorm")


def test_a_record_says_what_was_printed_without_study_and_data(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = {"model.n_embd": 128, "train.steps": 32}
    assert run(folder, Trainer(ladder), sizes=THREE_SIZES, target=target) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for file in folder.iterdir():  # another machine: neither study, recipe nor text
        if file.name != "runs" and file.is_file():
            file.unlink()
    assert is_study(study_of(folder)) and not is_study(folder)
    record = read_study_record(study_of(folder))
    assert [size.size for size in record.sizes] == ["small", "medium", "large"] and record.is_done
    assert record.largest is record.sizes[-1] and record.designs == ("rmsnorm",)
    for row in record.rows:
        for verdict in row.verdicts:
            assert " ".join(cell for cell in verdict_cells(row, verdict) if cell) in printed
    for one in record.foretold:
        assert foretold_sentence(one) in printed
    assert [size.tokens for size in record.sizes] == [4 * 4 * 32, 8 * 4 * 32, 16 * 4 * 32]
    assert record.target_flops is not None and record.target_flops > record.sizes[-1].flops
    assert all(one.status == "finished" and one.folder for one in record.runs) and len(record.runs) == 18
    first = record.runs[0]
    assert first.folder is not None
    assert first.val_loss == json.loads((first.folder / "summary.json").read_text())["val_loss"]


def test_a_half_done_study_says_what_is_to_come(folder: Path) -> None:
    trainer = Trainer(gain)

    def stop() -> None:
        if len(trainer.trained) == 4:
            raise KeyboardInterrupt

    trainer.before = stop
    with pytest.raises(KeyboardInterrupt):
        run(folder, trainer, **TWO_RATES)
    record = read_study_record(study_of(folder))
    ended = [one for one in record.runs if one.status]
    assert len(ended) == 3 and len(record.runs) == 14 and not record.is_done
    assert all(math.isnan(one.val_loss) and one.folder is None for one in record.runs if not one.status)
    (row,) = record.rows
    assert row.state == "under way" and row.verdicts == () and record.largest is None
    assert record.sizes[0].best_rates == {"vanilla": None, "rmsnorm": None}


def test_failed_runs_keep_their_reasons(folder: Path) -> None:
    ends = {("rmsnorm", 2): "diverged", ("rmsnorm", 3): "failed"}
    assert run(folder, Trainer(gain, ends=ends)) == 0
    record = read_study_record(study_of(folder))
    assert record.rows[0].verdicts[0].failed == {2: "diverged at step 1", 3: "RuntimeError: burnt"}
    assert {one.status for one in record.runs} == {"finished", "diverged", "failed"}


def test_files_that_say_too_little_are_refused_in_a_sentence(folder: Path) -> None:
    assert run(folder, Trainer(gain)) == 0
    content = results_of(folder)
    del content["runs"]
    file = study_of(folder) / "results.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"results.json: runs is missing: python scripts/study.py STUDY.yaml"):
        read_study_record(study_of(folder))
    file.unlink()
    with pytest.raises(UserError, match=r"has no results\.json yet"):
        read_study_record(study_of(folder))
