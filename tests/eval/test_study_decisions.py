"""What a study runs next and what it says, by simulation: order, gates, best rates, failures, looks."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eval.studies.findings.results import Results
from eval.studies.findings.sequential import decider, looks_so_far
from eval.studies.findings.verdicts import judge_size, overall
from eval.studies.outcomes import Outcome
from eval.studies.plan import Cell, Plan
from eval.studies.queue import best_rate, gate, next_cells

from .studied import THREE_RATES, THREE_SIZES, Loss, make_files, plan_of, simulate
from .study_simulation import OPTIMA
from .study_simulation import losses as losses_at
from .study_simulation import words as words_of

SEED_SD = 0.002
BASE = {"small": 3.6, "medium": 3.3, "large": 3.1, "recipe": 3.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("files"))


def losses(draw: int, gain: Callable[[Cell], float]) -> Loss:
    """Losses with noise over seeds of `SEED_SD`, drawn anew for each run."""

    def loss(cell: Cell) -> float:
        generator = np.random.default_rng([draw, *cell.name.encode()])
        return BASE[cell.size] + gain(cell) + SEED_SD * float(generator.standard_normal())

    return loss


def words(plan: Plan, loss: Loss, size: str = "recipe") -> dict[tuple[str, str], str]:
    comparisons = dict.fromkeys(plan.sizes, len(plan.candidates))
    found = judge_size(plan, simulate(plan, loss), size, comparisons)
    return {(verdict.design, verdict.at): verdict.word for verdict in found}


def test_runs_come_in_blocks_of_a_seed_with_the_baseline_first(folder: Path) -> None:
    plan = plan_of(folder, variants=["rmsnorm", "dyt"], sizes=THREE_SIZES)
    cells = next_cells(plan, {}, decider({}))
    assert [(cell.seed, cell.design) for cell in cells] == [
        (seed, design) for seed in (1, 2, 3) for design in ("vanilla", "rmsnorm", "dyt")
    ]
    assert {cell.size for cell in cells} == {"small"}


def test_a_best_rate_is_chosen_on_selection_seeds_and_judged_on_others(folder: Path) -> None:
    plan = plan_of(folder, **THREE_RATES)
    seen: list[Cell] = []

    def loss(cell: Cell) -> float:
        seen.append(cell)
        # On the selection seeds 2x is best for rmsnorm; on the judged ones it is far worse.
        best = cell.design == "rmsnorm" and cell.rate == "2x"
        judged = cell.seed < 100
        return 3.3 + 0.001 * (cell.seed % 100) + (0.04 if judged else -0.02) * best

    outcomes = simulate(plan, loss)
    assert best_rate(plan, outcomes, "recipe", "rmsnorm") == "2x"
    assert best_rate(plan, outcomes, "recipe", "vanilla") in ("0.5x", "1x", "2x")
    judged = {(cell.design, cell.rate) for cell in seen if cell.seed < 100}
    assert ("rmsnorm", "2x") in judged and ("rmsnorm", "0.5x") not in judged
    first_other = next(n for n, cell in enumerate(seen) if cell.seed < 100 and cell.rate == "2x")
    assert {cell for cell in seen[:first_other] if cell.design == "rmsnorm" and cell.seed > 100} == {
        Cell("recipe", "rmsnorm", rate, seed)
        for rate in plan.rates("recipe", "rmsnorm")
        for seed in (101, 102, 103)
    }
    (shared, best) = judge_size(plan, outcomes, "recipe", {"recipe": 1})
    assert best.effect and best.effect.estimate > 0.03 and (shared.rate, best.rate) == ("1x", "2x")


def test_an_optimum_at_twice_the_rate_that_is_equal_there_is_not_better(folder: Path) -> None:
    """Whichever of the two has its optimum at the shared rate."""
    plan = plan_of(folder, seeds=[1, 2, 3, 4, 5], **THREE_RATES)
    found = [
        [words_of(plan, losses_at(draw, OPTIMA[name])) for draw in range(40)]
        for name in ("design's at 2x", "baseline's at 2x")
    ]
    assert [{shared for shared, _ in one} for one in found] == [{"worse"}, {"better"}]
    at_best = [best for one in found for _, best in one]
    assert at_best.count("better") <= 0.05 * len(at_best) + 2


def test_a_gain_that_changes_sign_with_size_stops_at_the_second_gate(folder: Path) -> None:
    plan = plan_of(folder, variants=["rmsnorm", "dyt"], sizes=THREE_SIZES, **THREE_RATES)
    gains = {("rmsnorm", "small"): -0.02, ("rmsnorm", "medium"): 0.02, ("rmsnorm", "large"): 0.06}
    for draw in range(5):
        outcomes = simulate(
            plan,
            losses(draw, lambda cell: gains.get((cell.design, cell.size), 0) - 0.01 * (cell.design == "dyt")),
        )
        ran = {(cell.size, cell.design) for cell in outcomes}
        assert ("medium", "rmsnorm") in ran and ("large", "rmsnorm") not in ran
        assert ("large", "dyt") in ran and ("large", "vanilla") in ran
        decided = decider(dict.fromkeys(plan.sizes, 2))
        assert [gate(plan, outcomes, size, "rmsnorm", decided) for size in ("small", "medium")] == [
            True,
            False,
        ]
    outcomes = simulate(plan, losses(0, lambda cell: 0.02 * (cell.design != "vanilla")))
    assert {cell.size for cell in outcomes} == {"small"}


@pytest.mark.parametrize(("difference", "word"), [(-0.02, "better"), (0.02, "worse")])
def test_a_clear_difference_is_named_and_an_unclear_one_is_not_shown(
    folder: Path, difference: float, word: str
) -> None:
    plan = plan_of(folder, variants=["rmsnorm", "dyt"], seeds=[1, 2, 3, 4, 5])
    found = words(plan, losses(1, lambda cell: difference * (cell.design == "rmsnorm")))
    assert found["rmsnorm", "shared rate"] == word
    few = plan_of(folder, variants=["rmsnorm"], seeds=[1, 2])
    said = [words(few, losses(draw, lambda cell: 0.0))["rmsnorm", "shared rate"] for draw in range(20)]
    assert sum(one.startswith("not shown (could have shown 0.0") for one in said) >= 17


def test_equivalence_is_a_verdict_of_its_own_and_one_seed_is_none(folder: Path) -> None:
    plan = plan_of(folder, seeds=list(range(1, 13)), rules={"equivalent_within": 0.004})
    found = [words(plan, losses(draw, lambda cell: 0.0))["rmsnorm", "shared rate"] for draw in range(10)]
    assert found.count("equivalent within 0.004") >= 8
    one = plan_of(folder, seeds=[1])
    assert words(one, losses(0, lambda cell: -1.0))["rmsnorm", "shared rate"] == "not measured"


def test_a_run_that_fails_makes_the_word_and_never_a_better(folder: Path) -> None:
    plan = plan_of(folder, variants=["rmsnorm", "dyt"], sizes={"small": {}, "medium": {"train.steps": 8}})
    broken = {("rmsnorm", 2): math.nan, ("dyt", 3): 7.5}

    def loss(cell: Cell) -> float:
        return broken.get(
            (cell.design, cell.seed), losses(0, lambda cell: -0.05 * (cell.design != "vanilla"))(cell)
        )

    outcomes = simulate(plan, loss)
    found = judge_size(plan, outcomes, "small", {"small": 2})
    assert [(one.design, one.word, one.planned) for one in found] == [
        ("rmsnorm", "fails in 1 of 3", 3),
        ("dyt", "fails in 1 of 3", 3),
    ]
    assert found[0].failed == {2: "diverged"} and "ended at 7.5000, above" in found[1].failed[3]
    assert all(one.effect and one.effect.seeds == 2 and one.effect.estimate < -0.03 for one in found)
    low, high = found[0].failure_interval
    assert low == pytest.approx(0.0084, abs=1e-4) and high == pytest.approx(0.9057, abs=1e-4)
    assert {cell.size for cell in outcomes} == {"small"}  # neither passes its gate


def test_a_baseline_that_fails_gives_no_verdict(folder: Path) -> None:
    plan = plan_of(folder)
    noisy = losses(0, lambda cell: -0.05 * (cell.design != "vanilla"))
    outcomes = simulate(plan, lambda cell: 7.0 if (cell.design, cell.seed) == ("vanilla", 1) else noisy(cell))
    (verdict,) = judge_size(plan, outcomes, "recipe", {"recipe": 1})
    assert verdict.word == "not judged: the baseline fails in 1 of 3"
    assert verdict.effect and verdict.effect.seeds == 2 and not verdict.failed


def test_an_unlearnt_model_and_an_unrecovered_spike_are_blow_ups(folder: Path) -> None:
    plan = plan_of(folder)
    outcomes = simulate(plan, losses(0, lambda cell: 0.0))
    cells = [Cell("recipe", "rmsnorm", "1x", seed) for seed in (1, 2, 3)]
    outcomes[cells[0]] = Outcome("finished", outcomes[cells[0]].loss, spike=0.6)
    outcomes |= {cell: Outcome("finished", 3.40, floor=3.38) for cell in cells[1:]}
    (verdict,) = judge_size(plan, outcomes, "recipe", {"recipe": 1})
    assert "a spike of 0.60" in verdict.failed[1] and "token frequencies" in verdict.failed[2]


def test_more_looks_make_wider_intervals(folder: Path) -> None:
    plan = plan_of(folder)
    outcomes = simulate(plan, losses(0, lambda cell: 0.0))
    widths = [
        found.high - found.low
        for looks in (1, 5, 20)
        for found in judge_size(plan, outcomes, "recipe", {"recipe": looks})
    ]
    assert widths[0] < widths[1] < widths[2]


def test_a_sequential_study_adds_seeds_until_each_answer_is_clear(folder: Path) -> None:
    plan = plan_of(
        folder, variants=["rmsnorm", "dyt"], seeds=[1, 2], rules={"sequential": True, "most_seeds": 12}
    )
    counts, gain = [], {"rmsnorm": -0.03, "dyt": 0.0, "vanilla": 0.0}
    for draw in range(10):
        outcomes = simulate(plan, losses(draw, lambda cell: gain[cell.design]))
        seeds = {name: sum(cell.design == name for cell in outcomes) for name in gain}
        assert seeds["vanilla"] == max(seeds["rmsnorm"], seeds["dyt"]) <= 12
        found = {one.design: one for one in judge_size(plan, outcomes, "recipe", {"recipe": 2})}
        assert found["rmsnorm"].word == "better" and found["rmsnorm"].planned == seeds["rmsnorm"]
        counts.append((seeds["rmsnorm"], seeds["dyt"]))
        (look,) = looks_so_far(plan, outcomes, "recipe", "dyt", {"recipe": 2})
        assert f"after {seeds['dyt']} seeds: {found['dyt'].effect.estimate:+.4f} [" in look
    assert np.mean([one for one, _ in counts]) < np.mean([other for _, other in counts])


def test_looking_after_each_seed_does_not_make_nulls_better(folder: Path) -> None:
    plan = plan_of(
        folder, variants=["rmsnorm", "dyt"], seeds=[1, 2], rules={"sequential": True, "most_seeds": 10}
    )
    draws, false = 60, 0
    for draw in range(draws):
        found = words(plan, losses(draw, lambda cell: 0.0))
        false += any(word in ("better", "worse") for word in found.values())
    assert false <= 0.05 * draws + 3


def test_a_study_is_better_only_where_both_rates_say_so(folder: Path) -> None:
    plan = plan_of(folder, seeds=[1, 2, 3, 4, 5], **THREE_RATES)
    gain = {"0.5x": 0.05, "1x": 0.0, "2x": -0.05}
    outcomes = simulate(plan, losses(0, lambda cell: gain[cell.rate] * (cell.design == "rmsnorm")))
    found = judge_size(plan, outcomes, "recipe", {"recipe": 1})
    assert overall(found).endswith("at the shared rate, better at each one's best rate")
    assert overall(found[:1]) == found[0].word.partition(" (")[0]


def test_a_composite_says_what_each_part_adds_alone_and_to_the_others(folder: Path) -> None:
    parts = {
        "rms": {"model.norm": "rmsnorm"},
        "rope": {"model.positions": "rotary"},
        "relu": {"model.mlp": "relu_squared"},
    }
    plan = plan_of(folder, variants=None, composite=parts)
    # rms gains beside nothing and nothing beside the others; relu gains everywhere; rope never.
    gains = {"+rms": -0.03, "+relu": -0.05, "whole": -0.05, "whole-rms": -0.05, "whole-rope": -0.05}
    outcomes = simulate(plan, losses(2, lambda cell: gains.get(cell.design, 0.0)))
    found = {part.name: part for part in Results(plan, outcomes, {"recipe": 7}).parts()}
    estimates = {
        name: [effect.estimate if effect else math.nan for effect in (part.alone, part.to_the_others)]
        for name, part in found.items()
    }
    expected = {"rms": [-0.03, 0.0], "rope": [0.0, 0.0], "relu": [-0.05, -0.05]}
    assert {name: pytest.approx(values, abs=0.006) for name, values in expected.items()} == estimates
