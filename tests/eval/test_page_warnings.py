"""What the page warns of: each thing once, with its runs and what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.evidence.results import read_run
from eval.evidence.spikes import find_spikes
from eval.page.warnings import warnings_section
from tests.eval.cards import card_of

MakeRun = Callable[..., Path]


def warned(*folders: Path) -> list[str]:
    section = warnings_section(card_of(*folders))
    return section.blocks[0].lines if section.blocks else []


def seeds(make_run: MakeRun, variant: str, *numbers: int, **facts) -> list[Path]:
    return [make_run(variant, number, **facts) for number in numbers]


def add_to_losses(run: Path, changes: dict[int, float]) -> Path:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train":
            line["loss"] += changes.get(line["step"], 0.0)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_runs_without_a_problem_have_no_section(make_run: MakeRun) -> None:
    folders = seeds(make_run, "vanilla", 1, 2) + seeds(make_run, "rmsnorm", 1, 2)
    assert warned(*folders) == []


def test_one_seed_is_said_once_for_all_designs(make_run: MakeRun) -> None:
    (said,) = warned(make_run("vanilla"), make_run("rmsnorm"))
    assert said.startswith("One seed only: ") and "vanilla" in said and "rmsnorm" in said
    assert "--train.init_seed 2" in said


@pytest.mark.parametrize(("loss", "has_learnt"), [(7.35, False), (7.29, False), (7.2, True)])
def test_a_recipe_that_has_not_learnt_is_said_first(make_run: MakeRun, loss: float, has_learnt: bool) -> None:
    """The unigram model scores 7.31; 0.05 below is the least."""
    folders = seeds(make_run, "vanilla", 1, 2, val_loss=loss) + seeds(
        make_run, "rmsnorm", 1, 2, val_loss=loss
    )
    lines = warned(*folders)
    assert lines == [] if has_learnt else lines[0].startswith("Nothing has learnt with this recipe")
    assert has_learnt or f"ends {abs(7.31 - loss):.3f} nats per token" in lines[0]
    assert sum("unigram" in line for line in lines) == (not has_learnt)


def test_failures_name_their_seeds_and_causes(make_run: MakeRun) -> None:
    folders = [*seeds(make_run, "vanilla", 1, 2, 3), make_run("rmsnorm", 1), make_run("rmsnorm", 2)]
    folders.append(make_run("rmsnorm", 3, status="diverged", step=60, val_loss=None))
    folders.append(make_run("rmsnorm", 4, val_loss=9.0))
    lines = warned(*folders)
    (said,) = (line for line in lines if "fails in" in line)
    assert said.startswith("rmsnorm fails in 2 of 4 runs (95 % interval of the rate 7% to 93%)")
    assert (
        "seed 3 diverged at step 60" in said and "seed 4 ended at 9.000" in said and "lower learning" in said
    )
    assert not any("diverged" in line for line in lines if line is not said)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        ("running", "write the page again"),
        ("interrupted", "goes on"),
        ("failed", "its error is in summary.json"),
    ],
)
def test_unfinished_runs_are_named_with_what_to_do(make_run: MakeRun, status: str, remedy: str) -> None:
    folders = seeds(make_run, "vanilla", 1, 2) + seeds(make_run, "rmsnorm", 1, 2)
    folders.append(make_run("rmsnorm", 3, status=status, step=60, val_loss=None))
    (said,) = warned(*folders)
    assert said.startswith(f"rmsnorm, seed 3: {status}, at step 60;") and remedy in said


def test_a_task_that_some_runs_lack_is_a_command(make_run: MakeRun) -> None:
    both = {"piqa": {"acc": 0.5}, "sciq": {"acc": 0.5}}
    folders = [*seeds(make_run, "vanilla", 1, 2, tasks=both), make_run("rmsnorm", 1, tasks=both)]
    folders.append(make_run("rmsnorm", 2, tasks={"piqa": {"acc": 0.5}}))
    folders.append(make_run("rmsnorm", 3))
    lines = [line for line in warned(*folders) if "not scored" in line]
    assert lines[0].startswith("rmsnorm, seed 2: not scored on sciq,") and "--tasks sciq." in lines[0]
    assert lines[1].startswith("rmsnorm, seed 3: not scored on piqa, sciq,") and len(lines) == 2


def test_settings_and_sizes_that_differ_are_said(make_run: MakeRun) -> None:
    folders = seeds(make_run, "vanilla", 1, 2, parameters=1000)
    folders += seeds(make_run, "rmsnorm", 1, 2, parameters=1100, world_size=1)
    processes, size = warned(*folders)
    assert processes.startswith("Not the same number of processes (2 in vanilla; 1 in rmsnorm): sums are")
    assert size.startswith("rmsnorm has 10.0% more parameters than vanilla: ")


def test_what_is_true_of_several_runs_is_said_once(make_run: MakeRun) -> None:
    folders = seeds(make_run, "vanilla", 1, 2, skipped_steps=3, preflight="skipped")
    folders += [make_run("rmsnorm", 1, skipped_steps=3), make_run("rmsnorm", 2)]
    skipped, preflight = warned(*folders)
    assert skipped.startswith("vanilla; rmsnorm, seed 1: each skipped 3 steps: ")
    assert (
        preflight.startswith("vanilla: each was trained without the pre-flight check")
        and "model.preflight" in preflight
    )


def test_a_partner_that_is_missing_is_said(make_run: MakeRun) -> None:
    folders = seeds(make_run, "vanilla", 1, 2) + seeds(make_run, "rmsnorm", 1, 2, 3)
    (said,) = warned(*folders)
    assert (
        said.startswith("rmsnorm: only 2 of 3 finished runs have a vanilla partner")
        and "train vanilla" in said
    )


def test_spikes_that_went_by_are_counted(make_run: MakeRun) -> None:
    """Two of several steps each; noise of batches has a deviation of 0.1 here."""
    folders = seeds(make_run, "vanilla", 1, 2) + seeds(make_run, "rmsnorm", 1, 2)
    add_to_losses(folders[3], {5: 3.0, 120: 1.4, 121: 2.0, 122: 1.0, 170: 1.5})
    found = find_spikes(read_run(folders[3]))
    assert (
        found is not None
        and (found.count, found.step) == (2, 121)
        and found.highest == pytest.approx(2, abs=0.4)
    )
    assert find_spikes(read_run(folders[0])) is None
    (said,) = warned(*folders)
    assert said.startswith("rmsnorm, seed 2: 2 spikes in the training loss that went by")
    assert "at step 121: look" in said
