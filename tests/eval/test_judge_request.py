"""What scripts/judge.py takes: the candidate anywhere, keys for whom they are, and mistakes in a sentence."""

from pathlib import Path

import pytest

from eval.judging.request import read_judge
from model.errors import UserError

from .judged import NORM, make_judged, words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_judged(tmp_path_factory.mktemp("judged"))


def test_the_candidate_stands_anywhere_in_the_line(folder: Path) -> None:
    candidate, *options = words(folder)
    for line in ([candidate, *options], [*options, candidate], [*options, f"--candidate={candidate}"]):
        trials = read_judge(line).trials
        assert [(trial.role, trial.seed) for trial in trials] == [
            (role, seed) for seed in (1, 2, 3) for role in ("candidate", "baseline")
        ]
        assert {trial.recipe.variant for trial in trials} == {"mine+pre", "vanilla"}
        assert [trial.recipe.train.init_seed for trial in trials] == [1, 1, 2, 2, 3, 3]
        assert all(f"--train.init_seed={trial.seed}" == trial.words[-1] for trial in trials)


def test_keys_of_the_design_are_the_candidates_and_others_are_for_both(folder: Path) -> None:
    line = [*words(folder)[1:], "rmsnorm", "--model.norm_options.eps", "1e-3", "--model.n_layer=3"]
    request = read_judge([*line, "--ds.optimizer.params.lr", "2e-3"])
    ours, theirs = request.first("candidate"), request.first("baseline")
    assert ours.recipe.model.norm_options == {"eps": 1e-3} and theirs.recipe.model.norm_options == {}
    for trial in (ours, theirs):
        assert trial.recipe.model.n_layer == 3 and trial.deepspeed.peak_lr == 2e-3
        assert trial.settings()["learning_rate"] == 2e-3 and trial.tokens == 4 * 4 * 32
    assert request.changes == {
        "model.norm_options.eps": "1e-3",
        "model.n_layer": "3",
        "ds.optimizer.params.lr": "2e-3",
    }


def test_a_class_of_another_name_is_a_candidate_by_its_key(folder: Path) -> None:
    (folder / "named.py").write_text(NORM.replace("LayerNorm", "Mine"))
    request = read_judge([*words(folder)[1:], "--model.norm", f"{folder / 'named.py'}:Mine"])
    assert request.first("candidate").recipe.variant == "named:Mine+pre"
    assert request.first("baseline").recipe.variant == "vanilla"


def test_a_candidates_own_rates_are_its_own_and_told(folder: Path) -> None:
    (folder / "rates.py").write_text(NORM + "\nCONFIG_OVERRIDES = {'learning_rate': 5e-3}\n")
    request = read_judge([str(folder / "rates.py"), *words(folder)[1:]])
    assert request.first("candidate").settings()["learning_rate"] == 5e-3
    assert request.first("baseline").settings()["learning_rate"] == 1e-3
    assert request.first("candidate").overrides.applied == {"learning_rate": 5e-3}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--seeds", "0"], "--seeds is '0', but it must be a whole number of at least 1"),
        (["--ranks", "two"], "--ranks is 'two'"),
        (["--train.init_seed", "4"], "--train.init_seed is set by the judgment itself: give --seeds"),
        (["--model.variant", "rmsnorm"], "--model.variant is set by the judgment itself"),
        (["--baseline", "vanila"], "(did you mean 'vanilla'?)"),
        (["other.py"], "mine.py' and 'other.py' are two candidates: judge one after the other"),
        (["--seed", "4"], "unknown key 'seed' in the command line; the nearest known key is 'seeds'"),
        (["--train.steps", "2"], "schedule.steps is 2: it must be more than schedule.warmup"),
        (["--recipe", "no.yaml"], "'no.yaml', but there is no such file"),
    ],
)
def test_what_cannot_be_is_one_sentence(folder: Path, more: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        read_judge(words(folder, *more))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_candidate_that_is_the_baseline_or_called_like_it_is_refused(folder: Path) -> None:
    line = words(folder)[1:]
    with pytest.raises(UserError, match="the candidate is missing"):
        read_judge(line)
    with pytest.raises(UserError, match="the candidate 'vanilla' is the baseline"):
        read_judge(["vanilla", *line])
    (folder / "vanilla.py").write_text(NORM + "\nclass Block(torch.nn.Module):\n    pass\n")
    with pytest.raises(UserError, match="would be called vanilla, as the baseline is: rename its file"):
        read_judge([str(folder / "vanilla.py"), *line])
