"""What a study's file may hold: read strictly, every run resolved, what cannot be said in a sentence."""

from pathlib import Path
from typing import Any

import pytest

from eval.studies.command import read_command
from eval.studies.plan import OWN, make_plan
from eval.studies.study import read_study
from model.errors import UserError

from .studied import THREE_RATES, THREE_SIZES, TWO_RATES, make_files, plan_of, write_study

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("files"))


def test_every_run_is_resolved_as_train_py_would(folder: Path) -> None:
    plan = plan_of(
        folder,
        sizes=THREE_SIZES,
        overrides={"train.val_every": 2, "model.n_embd": 48},
        variants=["rmsnorm", str(folder / "mine.py")],
        **THREE_RATES,
    )
    assert [design.name for design in plan.designs] == ["vanilla", "rmsnorm", "mine"]
    assert plan.sizes == ("small", "medium", "large")
    trial = plan.trials["large", "rmsnorm", "2x"]
    assert (trial.recipe.model.n_embd, trial.recipe.train.steps, trial.recipe.train.val_every) == (64, 16, 2)
    assert trial.recipe.schedule.steps == 16 and trial.recipe.model.norm == "rmsnorm"
    assert trial.deepspeed.peak_lr == pytest.approx(2e-3)
    assert plan.rates("small", "rmsnorm") == ("0.5x", "1x", "2x") and plan.shared["small"] == "1x"


def test_a_candidates_own_rates_are_one_more_rate_and_no_others(folder: Path) -> None:
    plan = plan_of(
        folder, variants=[str(folder / "mine.py")], overrides={"ds.optimizer.params.lr": 2e-3}, **TWO_RATES
    )
    size = plan.sizes[0]
    assert plan.rates(size, "mine") == ("1x", "2x", OWN) and plan.rates(size, "vanilla") == ("1x", "2x")
    peaks = [plan.trials[size, "mine", rate].deepspeed.peak_lr for rate in plan.rates(size, "mine")]
    assert peaks == [2e-3, 4e-3, 4e-3]
    shared, own = (plan.trials[size, "mine", rate] for rate in ("1x", OWN))
    assert shared.overrides.applied == {} and own.overrides.applied == {"learning_rate": 4e-3}


def test_absolute_rates_hold_each_sizes_shared_rate(folder: Path) -> None:
    keys: dict[str, Any] = {"rates": [5e-4, 1e-3, "2e-3"], "selection_seeds": [9]}
    plan = plan_of(folder, **keys)
    assert plan.shared[plan.sizes[0]] == "0.001"
    with pytest.raises(
        UserError, match=r"the shared rate of size big is 0.003, which is not among the rates"
    ):
        plan_of(folder, sizes={"big": {"ds.optimizer.params.lr": 3e-3}}, **keys)


def test_a_composite_is_each_part_alone_all_and_all_but_each(folder: Path) -> None:
    parts = {
        "rms": {"model.norm": "rmsnorm"},
        "rope": {"model.positions": "rotary"},
        "relu": {"model.mlp": "relu_squared"},
    }
    plan = plan_of(folder, variants=None, composite=parts)
    names = ["+rms", "+rope", "+relu", "whole", "whole-rms", "whole-rope", "whole-relu"]
    assert list(plan.candidates) == names
    model = plan.trials[plan.sizes[0], "whole-rope", "1x"].recipe.model
    assert (model.norm, model.positions, model.mlp) == ("rmsnorm", "learned", "relu_squared")
    assert len({plan.identity(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"seedz": [1]}, r"unknown key 'seedz' in the study \(did you mean 'seeds'\?\)"),
        ({"rules": {"gat": 0}}, r"unknown key 'gat' in rules \(did you mean 'gate'\?\)"),
        ({"rules": {"confidence": 1.5}}, "rules.confidence is 1.5, but it must be a number above 0.5"),
        ({"seeds": None}, "'seeds' is missing"),
        ({"seeds": [1, 1]}, "'seeds' holds 1 twice"),
        ({"seeds": "many"}, "seeds is 'many', but it must be a list"),
        ({"variants": []}, "'variants' is empty"),
        ({"variants": ["vanilla"]}, "two designs would be called vanilla"),
        ({"variants": ["rmsnrm"]}, r"at size recipe: model.variant is 'rmsnrm'.*mean 'rmsnorm'"),
        ({"rates": ["1x", "2x"]}, "'selection_seeds' is missing"),
        ({"rates": ["1x", "2x"], "selection_seeds": [3]}, "seed 3 stands in 'seeds' and"),
        ({"rates": ["2x"]}, r"the shared rate of size recipe is 0.001, which is not among the rates \(2x\)"),
        ({"rates": ["fast"]}, "rates is 'fast', but it must be a number"),
        ({"rates": ["0x"]}, "rates has 0x, but a rate is a number above 0"),
        ({"sizes": {"big": {"n_layer": 4}}}, "sizes.big has the key 'n_layer': keys are written whole"),
        ({"sizes": {"big": {"model.n_layr": 4}}}, "vanilla at size big: unknown key 'model.n_layr'"),
        ({"sizes": {"big": {"train.init_seed": 4}}}, "size big sets train.init_seed, which the study"),
        ({"overrides": {"model.norm": "rmsnorm"}}, "overrides sets model.norm, which the study itself sets"),
        ({"sizes": {"big": {}}, "target": "bg"}, r"'target' is 'bg', which is no size .*did you mean 'big'"),
        ({"target": {"model.n_layr": 9}, "sizes": {"a": {}}}, "at target: unknown key 'model.n_layr'"),
        ({"composite": {"big": {"train.steps": 9}}}, "composite.big sets train.steps, but a part"),
        ({"ranks": 3}, "do not divide: train_batch_size 4"),
        ({"variants": ["layernorm_no_bias"], "overrides": {"model.bias": 3}}, "model.bias is '3'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(folder: Path, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        plan_of(folder, **keys)
    assert str(refused.value).count("\n") == 0 and str(folder / "study.yaml") in str(refused.value)


def test_twins_and_own_rates_without_selection_seeds_are_refused(folder: Path) -> None:
    (folder / "twin.py").write_text((folder / "mine.py").read_text().replace("CONFIG_OVERRIDES", "UNUSED"))
    (folder / "other.py").write_text((folder / "twin.py").read_text())
    with pytest.raises(UserError, match="twin and other are one design"):
        plan_of(folder, variants=[str(folder / "twin.py"), str(folder / "other.py")])
    with pytest.raises(UserError, match="mine brings rates of its own"):
        plan_of(folder, variants=[str(folder / "mine.py")])


def test_the_command_line_takes_one_study_and_one_question(folder: Path) -> None:
    file = str(write_study(folder))
    request = read_command(["--runs", str(folder / "runs"), file, "--sequential", "--plan"])
    assert request.mode == "plan" and request.plan.study.rules.sequential
    assert request.folder.path == folder / "runs" / "studies" / "study"
    for words, sentence in (
        ([], "the study is missing"),
        ([file, file], "are two studies"),
        ([file, "--plan", "--status"], "two questions"),
        ([file, "--sequentail"], "the nearest known key is 'sequential'"),
        ([str(folder / "stdy.yaml")], f"did you mean '{file}'"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_command(words)


@pytest.mark.parametrize("name", ["sample", "protocol"])
def test_the_studies_that_come_with_it_resolve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = make_plan(read_study(Path("recipes/studies", f"{name}.yaml")))
    assert len(plan.candidates) >= 1 and len(plan.rates(plan.sizes[0], plan.baseline)) >= 2
