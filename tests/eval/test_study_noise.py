"""A study's baseline judged against itself, and what its sizes say before all of them have ended."""

from dataclasses import replace
from pathlib import Path

import pytest

from eval.studies.findings.results import Results
from eval.studies.plan import Cell
from eval.studies.queue import next_cells
from model.errors import UserError

from .studied import (
    NORM,
    THREE_RATES,
    THREE_SIZES,
    Trainer,
    make_files,
    noise,
    plan_of,
    results_of,
    run,
    simulate,
)
from .test_study_decisions import losses, words


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_files(tmp_path)


def test_the_baseline_again_has_other_weights_and_is_mostly_noise(folder: Path) -> None:
    plan = plan_of(folder, repeat_baseline=True)
    cells = {
        cell.design: plan.trial(cell)
        for cell in next_cells(plan, {}, lambda *_: False)
        if cell.seed == plan.study.seeds[0]
    }
    one, other = cells["vanilla"].recipe, cells["vanilla_again"].recipe
    assert other.train.init_seed == one.train.init_seed + 1000
    assert replace(other, train=replace(other.train, init_seed=one.train.init_seed)) == one
    found = [
        words(plan, losses(draw, lambda cell: 0.0))["vanilla_again", "shared rate"] for draw in range(60)
    ]
    assert (
        sum(word in ("better", "worse") for word in found) <= 8
    )  # 5 % of 60, with three standard deviations


def test_the_baseline_again_passes_gates_that_stop_a_design(folder: Path) -> None:
    plan = plan_of(folder, sizes=THREE_SIZES, repeat_baseline=True)
    outcomes = simulate(plan, losses(1, lambda cell: 0.05 * (cell.design != "vanilla")))
    ran = {(cell.size, cell.design) for cell in outcomes}
    assert ("large", "vanilla_again") in ran and ("medium", "rmsnorm") not in ran
    results = Results(plan, outcomes, dict.fromkeys(plan.sizes, 2))
    assert results.row("large", "vanilla_again").state == "judged"
    assert results.row("large", "rmsnorm").note == "at the gate of size small"


def test_a_study_trains_the_baseline_again_from_other_weights(folder: Path) -> None:
    trainer = Trainer(lambda recipe, peak: 2.5 + noise(recipe))
    assert run(folder, trainer, repeat_baseline=True) == 0
    assert {seed for variant, seed, _ in trainer.trained if variant == "vanilla"} == {
        1,
        2,
        3,
        1001,
        1002,
        1003,
    }
    designs = {row["design"]: row for row in results_of(folder)["rows"]}
    assert designs["vanilla_again"]["state"] == "judged"


def test_a_variant_may_not_have_the_repetitions_name(folder: Path) -> None:
    file = folder / "vanilla_again.py"
    file.write_text(NORM)
    with pytest.raises(UserError, match="two designs would be called vanilla_again"):
        plan_of(folder, variants=[str(file)], repeat_baseline=True)


def test_a_size_whose_rates_are_still_tried_is_no_part_of_the_ladder(folder: Path) -> None:
    plan = plan_of(folder, sizes=THREE_SIZES, **THREE_RATES)
    gain = {"0.5x": 0.1, "1x": 0.05, "2x": 0.0}
    outcomes = simulate(plan, losses(3, lambda cell: gain[cell.rate] - 0.02 * (cell.design == "rmsnorm")))
    some = {
        cell: outcome
        for cell, outcome in outcomes.items()
        if cell.size == "small" or (cell.size == "medium" and cell.rate == "1x")
    }
    whole, part = (Results(plan, one, dict.fromkeys(plan.sizes, 1)) for one in (outcomes, some))
    assert len(whole.ladder(whole.row("small", "rmsnorm"))) == 3
    (rung,) = part.ladder(part.row("small", "rmsnorm"))
    its = [outcomes[Cell("small", "vanilla", "2x", seed)].loss for seed in (1, 2, 3)]
    assert rung.losses == tuple(its) and rung.flops == part.flops("small")
