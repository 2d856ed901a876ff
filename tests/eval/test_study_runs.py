"""A study's runs, made up: what is trained, shared by workers, stopped, failed, evaluated and found."""

import csv
import threading
from pathlib import Path

import pytest

from eval.judging.commands import Interrupted
from eval.judging.ledger import Ledger
from eval.studies.budget import shape_of, with_equal_budgets
from eval.studies.command import read_command
from eval.studies.job import print_plan, print_status, run_study
from model.errors import UserError
from training.config.recipe import Recipe

from .studied import (
    THREE_SIZES,
    TWO_RATES,
    Trainer,
    gain,
    make_files,
    noise,
    registration_of,
    results_of,
    run,
    write_study,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_files(tmp_path)


def test_a_study_trains_what_it_needs_once_and_writes_what_it_found(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(gain)
    assert run(folder, trainer, **TWO_RATES) == 0
    assert [one[:2] for one in trainer.trained[:4]] == [
        (variant, seed) for seed in (1, 2) for variant in ("vanilla", "rmsnorm")
    ]
    assert len(trainer.trained) == len(set(trainer.trained)) == 2 * 3 + 2 * 2 * 2
    found = results_of(folder)
    (row,) = found["rows"]
    assert found["done"] and row["word"] == "better" and row["passes_gate"]
    assert [one["at"] for one in row["verdicts"]] == ["shared rate", "best rate"]
    assert row["verdicts"][0]["difference"] == pytest.approx(-0.1, abs=0.01)
    assert row["cost"]["parameters"]["ratio"] == 1 and row["over_budget"] == []
    printed = capsys.readouterr().out
    assert printed.startswith("pre-registered ") and found["registration"]["sha256"][:16] in printed
    assert "best of 2 rates only; at least 3" in printed and "the ledger" in printed
    with (folder / "runs" / "studies" / "study" / "runs.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(trainer.trained)
    assert {line["role"] for line in lines if line["seed"] == "101"} == {"selection"}
    again = Trainer(gain)
    assert run(folder, again, **TWO_RATES) == 0 and again.trained == []
    assert len(Ledger(folder / "runs").entries()) == 1


def test_two_workers_divide_the_runs_and_come_to_the_same_results(folder: Path) -> None:
    trainer = Trainer(gain)
    both = threading.Barrier(2, timeout=60)
    waited: list[str] = []

    def meet() -> None:
        # The first run of each worker ends only once the other has one too.
        if len(waited) < 2:
            waited.append(threading.current_thread().name)
            both.wait()

    trainer.before = meet
    file = write_study(folder, **TWO_RATES)
    requests = [read_command([str(file), "--runs", str(folder / "runs")]) for _ in range(2)]
    statuses: list[int] = []
    workers = [
        threading.Thread(
            target=lambda request=request: statuses.append(run_study(request, trainer, lambda sentence: None))
        )
        for request in requests
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert statuses == [0, 0] and len(set(waited)) == 2
    assert len(trainer.trained) == len(set(trainer.trained)) == 14
    assert results_of(folder)["done"] and len(Ledger(folder / "runs").entries()) == 1


def test_a_stopped_study_goes_on_where_it_stopped(folder: Path) -> None:
    trainer = Trainer(gain)

    def stop() -> None:
        if len(trainer.trained) == 4:
            raise Interrupted

    trainer.before = stop
    with pytest.raises(Interrupted):
        run(folder, trainer)
    second = Trainer(gain)
    assert run(folder, second) == 0
    assert [*trainer.trained[:3], *second.trained] == list(
        dict.fromkeys(trainer.trained[:3] + second.trained)
    )
    assert len(second.trained) == 3


def test_errors_are_contained_counted_and_can_be_tried_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Trainer(gain, ends={("rmsnorm", 2): "failed"})
    assert run(folder, broken) == 0
    assert sum(one[:2] == ("rmsnorm", 2) for one in broken.trained) == 2  # rules.tries
    assert len({one[:2] for one in broken.trained}) == 6
    (row,) = results_of(folder)["rows"]
    assert row["word"] == "fails in 1 of 3" and row["verdicts"][0]["failed"] == {"2": "RuntimeError: burnt"}
    assert "fails in 1 of 3 runs (95 % interval of the rate 1% to 91%)" in capsys.readouterr().out
    again = Trainer(gain)
    assert run(folder, again) == 0 and again.trained == []
    assert run(folder, again, "--retry") == 0
    assert [one[:2] for one in again.trained] == [("rmsnorm", 2)]
    assert results_of(folder)["rows"][0]["word"] == "better"


def test_a_refused_design_is_tried_once_and_the_others_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(gain, ends={("layernorm_no_bias", 1): "refused"})
    assert run(folder, trainer, variants=["layernorm_no_bias", "rmsnorm"]) == 0
    assert [one[0] for one in trainer.trained].count("layernorm_no_bias") == 1
    refused, judged = results_of(folder)["rows"]
    assert refused["state"] == "refused" and "sees the future" in refused["note"]
    assert judged["word"] == "better" and "causality.model" in capsys.readouterr().out
    alone = Trainer(gain, ends={("layernorm_no_bias", 1): "refused"})
    status = run(folder, alone, variants=["layernorm_no_bias"], seeds=[1])
    assert status == 1


def test_divergence_is_an_outcome_that_is_not_tried_again(folder: Path) -> None:
    trainer = Trainer(gain, ends={("rmsnorm", seed): "diverged" for seed in (1, 2, 3)})
    assert run(folder, trainer) == 0
    assert len(trainer.trained) == 6
    (row,) = results_of(folder)["rows"]
    assert row["word"] == "fails in 3 of 3" and row["passes_gate"] is False
    (entry,) = Ledger(folder / "runs").entries()
    assert entry["status"] == "diverged" and Ledger(folder / "runs").looks() == 1


def test_sizes_are_foretold_before_they_run_and_held_against_what_came(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ladder(recipe: Recipe, peak: float) -> float:
        width = recipe.model.n_embd
        return 2 + 30 / width**0.7 + noise(recipe) - 0.1 * (recipe.model.norm == "rmsnorm")

    target = {"model.n_embd": 128, "train.steps": 32}
    assert run(folder, Trainer(ladder), sizes=THREE_SIZES, target=target) == 0
    found = results_of(folder)
    large, target_row = found["projections"]
    assert (large["size"], large["sizes"], large["as_foretold"]) == ("large", ["small", "medium"], True)
    assert large["foretold"]["value"] == pytest.approx(-0.1, abs=0.01)
    assert target_row["size"] == "target" and target_row["came"] is None
    rows = {row["size"]: row for row in found["rows"]}
    assert all(rows[size]["speed_up"]["low"] > 1 for size in ("medium", "large"))
    assert "foretold" in capsys.readouterr().out


def test_status_and_plan_run_and_write_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_study(folder, **TWO_RATES))
    words = [file, "--runs", str(folder / "runs")]
    assert print_status(read_command([*words, "--status"])) == 0
    assert "under way 0 of 7 runs" in capsys.readouterr().out
    assert print_plan(read_command([*words, "--plan"])) == 0
    said = capsys.readouterr().out
    assert "at most 20 runs of 512 tokens" in said and "assumed" in said and "not known" in said
    assert not (folder / "runs").exists()
    run(folder, Trainer(gain), **TWO_RATES)
    capsys.readouterr()
    assert print_plan(read_command([*words, "--plan"])) == 0
    said = capsys.readouterr().out
    assert "measured on 5 runs of vanilla that differ in their seeds alone" in said
    assert "at the 1,000 tokens per second" in said
    assert print_status(read_command([*words, "--status"])) == 0
    assert "better" in capsys.readouterr().out


def test_judged_runs_are_evaluated_where_the_study_asks_for_it(folder: Path) -> None:
    trainer = Trainer(gain)
    tasks = {"eval.tasks": ["published_validation"]}
    assert run(folder, trainer, evaluate=True, overrides=tasks, **TWO_RATES) == 0
    assert len(trainer.evaluated) == 6 and not any("seed10" in name for name in trainer.evaluated)
    card = (folder / "runs" / "studies" / "study" / "scorecard_recipe.md").read_text()
    assert "rmsnorm" in card and "better" in card


def test_a_damaged_ledger_or_record_is_named_before_anything_is_trained(folder: Path) -> None:
    run(folder, Trainer(gain))
    record = next((folder / "runs" / "studies" / "study" / "cells").glob("*.json"))
    record.write_text("{half")
    with pytest.raises(UserError, match="is not valid JSON: move it away"):
        run(folder, Trainer(gain))
    record.unlink()
    (folder / "runs" / "ledger.jsonl").write_text("{half")
    trainer = Trainer(gain)
    with pytest.raises(UserError, match="is not a JSON object"):
        run(folder, trainer)
    assert trainer.trained == []


def test_a_design_over_budget_is_held_against_a_widened_baseline_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wider(recipe: Recipe, peak: float) -> float:
        """All that the design gains is what its parameters are worth."""
        gains = recipe.model.block == "gated_attention" or recipe.model.n_inner is not None
        return 2.5 + noise(recipe) - 0.1 * gains

    trainer = Trainer(wider)
    assert run(folder, trainer, variants=["gated_attention_element", "rmsnorm"]) == 0
    gated, rms = results_of(folder)["rows"]
    assert [one["at"] for one in rms["verdicts"]] == ["shared rate"]
    shared, equal = gated["verdicts"]
    assert (shared["word"], equal["at"]) == ("better", "equal budget") and equal["word"] != "better"
    assert equal["baseline"].startswith("vanilla(") and len(trainer.trained) == 12
    request = read_command([str(folder / "study.yaml")])
    plan = with_equal_budgets(request.plan)
    (wide,) = plan.widened.values()
    its, mine, widened = (
        shape_of(plan.trials["recipe", name, "1x"].recipe.model)
        for name in ("vanilla", "gated_attention_element", wide)
    )
    assert mine.parameters > 1.01 * its.parameters
    # 2 layers, of which a step of the width adds twice 8 x 32 weights and 8 biases
    assert 0 <= widened.parameters - mine.parameters < 2 * (2 * 8 * 32 + 8)
    assert f"equal budget 1x beside {wide}" in capsys.readouterr().out


def test_a_sequential_study_says_each_look_and_stops_when_it_is_clear(folder: Path) -> None:
    said: list[str] = []
    trainer = Trainer(gain)
    file = write_study(folder, seeds=[1, 2], rules={"most_seeds": 12})
    request = read_command([str(file), "--runs", str(folder / "runs"), "--sequential"])
    assert run_study(request, trainer, said.append) == 0
    counts = [int(line.split("after ")[1].split()[0]) for line in said if "however often one looks" in line]
    assert counts == list(range(2, counts[-1] + 1)) and len(trainer.trained) < 2 * 12
    (verdict,) = results_of(folder)["rows"][0]["verdicts"]
    assert verdict["word"] == "better" and verdict["planned"] == len(trainer.trained) / 2 == counts[-1] + 1
    assert registration_of(folder)["plan"]["rules.sequential"] is True
