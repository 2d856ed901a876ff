"""What a study registered before its first run, what departs from it, and the looks that count."""

import json
import shutil
from pathlib import Path

import pytest

from eval.judging.ledger import Ledger
from eval.studies.command import read_command
from eval.studies.job import print_status, run_study

from .studied import (
    Trainer,
    gain,
    make_files,
    opened,
    registration_of,
    results_of,
    run,
    write_study,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_files(tmp_path)


def test_a_registration_is_made_before_the_first_run_and_departures_stay(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        run(folder, Trainer(gain, before=stop))
    first = registration_of(folder)
    assert first["there_before"] == [] and first["departures"] == []
    assert first["plan"]["rules.gate"] == 0 and first["plan"]["seeds"] == [1, 2, 3]
    assert any("rmsnorm against vanilla at the shared rate" in one for one in first["plan"]["comparisons"])
    assert first["plan"]["sizes.recipe.data_fingerprint"] and first["plan"]["sizes.recipe.train.steps"] == 4
    assert run(folder, Trainer(gain)) == 0
    assert registration_of(folder) == first
    changed = {"seeds": [1, 2, 3, 4], "rules": {"gate": 0.01}}
    assert run(folder, Trainer(gain), **changed) == 0 and run(folder, Trainer(gain), **changed) == 0
    later = registration_of(folder)
    (departure,) = later["departures"]
    assert departure["changes"] == ["rules.gate is 0.01, was 0.0", "seeds is [1, 2, 3, 4], was [1, 2, 3]"]
    assert (later["sha256"], later["plan"]) == (first["sha256"], first["plan"])
    assert "rules.gate is 0.01, was 0.0" in capsys.readouterr().out
    file = folder / "runs" / "studies" / "study" / "registration.json"
    file.write_text(json.dumps(later | {"plan": later["plan"] | {"rules.gate": 0.01}}))
    run(folder, Trainer(gain), **changed)
    assert "the registered plan was edited since" in capsys.readouterr().out


def test_a_study_that_finds_its_runs_says_that_they_were_there(folder: Path) -> None:
    assert run(folder, Trainer(gain)) == 0
    request = read_command([str(write_study(folder, name="second")), "--runs", str(folder / "runs")])
    trainer = Trainer(gain)
    assert run_study(request, trainer, print) == 0 and trainer.trained == []
    file = folder / "runs" / "studies" / "second" / "registration.json"
    assert len(json.loads(file.read_text())["there_before"]) == 6


def test_edited_code_and_other_data_are_other_runs(folder: Path) -> None:
    mine = {"variants": [str(folder / "mine.py")], "selection_seeds": [9], "seeds": [1, 2]}
    trainer = Trainer(gain)
    assert run(folder, trainer, **mine) == 0
    source = (folder / "mine.py").read_text()
    (folder / "mine.py").write_text(source.replace("eps=1e-6", "eps=1e-5"))
    edited = Trainer(gain)
    assert run(folder, edited, **mine) == 0
    ours = [one for one in trainer.trained if one[0] != "vanilla"]
    assert len(ours) >= 4 and edited.trained == ours
    (changes,) = [one["changes"] for one in registration_of(folder)["departures"]]
    assert len(changes) == 1 and changes[0].startswith("designs.mine is ")
    shutil.copy(folder / "corpus" / "topics.parquet", folder / "corpus" / "more.parquet")
    opened.cache_clear()
    other = Trainer(gain)
    assert run(folder, other, **mine) == 0 and len(other.trained) == len(trainer.trained)


def test_looks_at_the_same_baseline_widen_a_later_study(folder: Path) -> None:
    run(folder, Trainer(gain))
    alone = results_of(folder)
    others = ["dyt", "layernorm_no_bias"]
    write_study(folder, name="second", variants=others)
    request = read_command([str(folder / "second.yaml"), "--runs", str(folder / "runs")])
    assert run_study(request, Trainer(gain), lambda sentence: None) == 0
    second = json.loads((folder / "runs" / "studies" / "second" / "results.json").read_text())
    assert (alone["looks"], second["looks"]) == ({"recipe": 1}, {"recipe": 3})
    assert Ledger(folder / "runs").looks() == 3
    run(folder, Trainer(gain))
    assert results_of(folder)["rows"] == alone["rows"]  # what came later is no look of the first


def test_a_changed_file_is_a_departure_before_it_is_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, Trainer(gain)) == 0
    changed = str(write_study(folder, rules={"equivalent_within": 0.01}))
    assert print_status(read_command([changed, "--runs", str(folder / "runs"), "--status"])) == 0
    said = capsys.readouterr().out
    assert "departs from what was registered: rules.equivalent_within is 0.01, was 0.003" in said
    assert registration_of(folder)["departures"] == []
