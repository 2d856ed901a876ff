"""A published entry, its CONFIG_OVERRIDES included, from file to scorecard beside a baseline."""

import pydoc_data.topics
from pathlib import Path

import pytest

from tests.eval.cards import card_of
from tests.jobs import arguments, lines_of, make_job, run, steps_of, summary_of
from tests.model.published_script import script

STEPS = 10
PROTOCOL = ["--model.bias", "false", "--model.mlp", "gelu", "--model.dropout", "0"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline, and the entry that is the same design with a rate and a warm-up of its own."""
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    folder = make_job(tmp_path_factory.mktemp("job"), texts, STEPS)
    overrides = "{'learning_rate': 5e-4, 'warmup_iters': 4, 'min_lr': 1e-4}"
    (folder / "entry.py").write_text(script("rmsnorm", overrides))
    (folder / "forbidden.py").write_text(script("rmsnorm", "{'beta2': 0.99}"))
    for name, variant in (("baseline", "rmsnorm"), ("entry", str(folder / "entry.py"))):
        result = run(arguments(folder, folder / name, *PROTOCOL, "--model.variant", variant))
        assert result.returncode == 0, result.stderr
    return folder


def rates(run_dir: Path) -> list[float]:
    return [line["lr"] for line in lines_of(run_dir) if line["kind"] == "train"]


def test_an_entry_trains_at_its_own_rates(job: Path) -> None:
    assert rates(job / "baseline")[1] == 1e-3 and rates(job / "baseline")[-1] < 2e-4
    own = rates(job / "entry")
    assert own[:4] == pytest.approx([1.25e-4, 2.5e-4, 3.75e-4, 5e-4]) and own[-1] > 1e-4
    assert summary_of(job / "entry")["candidate_overrides"]["instead_of"] == {
        "learning_rate": 1e-3, "warmup_iters": 2, "min_lr": 1e-4,
    }  # fmt: skip
    assert "candidate_overrides" not in summary_of(job / "baseline")


def test_the_scorecard_shows_what_the_entry_set(job: Path) -> None:
    card = card_of(job / "baseline", job / "entry", baseline="rmsnorm")
    assert set(card.rows["name"]) == {"rmsnorm", "entry"}
    verdict = card.rows.set_index("name").loc["entry", "verdict"]
    assert "but with another learning rate (0.0005 against 0.001) and schedule (cosine" in verdict
    assert verdict.endswith("no verdict on the design")
    problems = "\n".join(card.problems)
    assert "Not the same learning rate (0.001 in rmsnorm; 0.0005 in entry)" in problems
    assert "own: learning_rate 0.0005 for 0.001, warmup_iters 4 for 2, min_lr 0.0001 for 0.0001" in problems


def test_ignored_an_entry_is_the_baseline_line_for_line(job: Path) -> None:
    variant = ["--model.variant", str(job / "entry.py"), "--train.candidate_overrides", "ignore"]
    result = run(arguments(job, job / "ignored", *PROTOCOL, *variant))
    assert result.returncode == 0 and "is not followed in learning_rate 0.0005" in result.stderr
    assert rates(job / "ignored") == rates(job / "baseline")
    ours, baseline = ([line[3] for line in steps_of(job / name)] for name in ("ignored", "baseline"))
    assert ours == pytest.approx(baseline, rel=1e-5)


def test_an_entry_with_a_forbidden_key_is_refused(job: Path) -> None:
    variant = ["--model.variant", str(job / "forbidden.py")]
    result = run(arguments(job, job / "forbidden", *PROTOCOL, *variant))
    assert result.returncode == 2 and "CONFIG_OVERRIDES sets 'beta2'" in result.stderr
    assert result.stderr.count("\n") == 1 and not (job / "forbidden").exists()
