"""What a run was: its design by recipe.yaml, its rates, its fixed parts, its candidate's own overrides."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.evidence.tables import to_markdown
from eval.page.runs import fact_table
from model import VARIANTS
from tests.eval.cards import card_of, verdict_on

MakeRun = Callable[..., Path]


def recipe(variant: str, schedule: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    rates = {"warmup": 10, "steps": 200, "floor": 0.1} | (schedule or {})
    return {"model": VARIANTS[variant].design | model, "schedule": rates}


def engine(lr: float, weight_decay: float = 0.1) -> dict[str, Any]:
    params = {"lr": lr, "weight_decay": weight_decay}
    return {"gradient_clipping": 1.0, "optimizer": {"type": "AdamW", "params": params}}


@pytest.mark.parametrize(
    ("old_name", "block", "was"),
    [
        ("rmsnorm_post", "post", "postnorm_rms"),
        ("rmsnorm_parallel", "parallel", "parallel_two_norms_rms"),
        ("sandwich", "sandwich", "rmsnorm_post"),
    ],
)
def test_a_run_stands_under_what_its_recipe_holds(
    make_run: MakeRun, old_name: str, block: str, was: str
) -> None:
    # an older recipe.yaml: the warm-up by its older name, and no options
    old = {"model": {"norm": "rmsnorm", "block": block}, "schedule": {"warmup_steps": 10, "steps": 200}}
    run = make_run(old_name, recipe=old, engine=engine(6e-4))
    vanilla = make_run("vanilla", recipe=recipe("vanilla"), engine=engine(6e-4))
    card = card_of(run, vanilla)
    assert set(card.rows["name"]) == {"vanilla", was}
    facts = fact_table(card).set_index("folder").loc[str(run)]
    assert facts["variant"] == was and facts["learning rate"] == "0.0006"
    assert not [problem for problem in card.problems if "schedule" in problem]


def test_rates_that_differ_are_said_and_not_averaged(make_run: MakeRun) -> None:
    vanilla = make_run("vanilla", recipe=recipe("vanilla"), engine=engine(6e-4))
    slow = make_run("mine", recipe=recipe("rmsnorm"), engine=engine(3e-4), val_loss=5.3)
    fast = make_run("mine", 2, recipe=recipe("rmsnorm"), engine=engine(6e-4), val_loss=5.2)
    card = card_of(vanilla, slow, fast)
    assert set(card.rows["name"]) == {
        "vanilla",
        "rmsnorm learning rate 0.0003",
        "rmsnorm learning rate 0.0006",
    }
    (said,) = (problem for problem in card.problems if "learning rate" in problem.partition("(")[0])
    assert said.startswith(
        "Not the same learning rate (0.0006 in vanilla, rmsnorm learning rate 0.0006; 0.0003"
    )
    other = make_run("other", recipe=recipe("lns", {"warmup": 0.5}), engine=engine(6e-4, 0.0), folder="other")
    problems = "\n".join(card_of(vanilla, other).problems)
    assert "Not the same schedule (cosine, warm-up of 10 steps" in problems and "100 steps" in problems
    assert "Not the same weight decay (0.1 in vanilla; 0 in lns)" in problems


def test_other_fixed_parts_are_not_compared(make_run: MakeRun) -> None:
    vanilla = make_run("vanilla", recipe=recipe("vanilla"), engine=engine(6e-4))
    gated = make_run("rmsnorm", recipe=recipe("rmsnorm", mlp="gelu", bias=False), engine=engine(6e-4))
    card = card_of(vanilla, gated)
    name = "rmsnorm bias=false, mlp=gelu"
    verdict = "not comparable, no vanilla run has the same fixed parts of the model"
    assert verdict_on(card, name) == verdict
    assert any(
        "Not the same fixed parts of the model (GPT-2's parts in" in problem for problem in card.problems
    )


def test_a_candidates_own_rates_are_shown(make_run: MakeRun) -> None:
    vanilla = make_run("vanilla", recipe=recipe("vanilla"), engine=engine(6e-4))
    given = {"learning_rate": 3e-4, "min_lr": 0.0}
    followed = {"given": given, "applied": given, "instead_of": {"learning_rate": 6e-4, "min_lr": 6e-5}}
    ignored = {"given": given, "applied": {}, "instead_of": {}}
    run = make_run("rmsnorm", recipe=recipe("rmsnorm"), engine=engine(3e-4), candidate_overrides=followed)
    text = to_markdown(card_of(vanilla, run))
    assert "settings of its candidate's own: learning_rate 0.0003 for 0.0006, min_lr 0 for 6e-05" in text
    run = make_run("lns", recipe=recipe("lns"), engine=engine(6e-4), candidate_overrides=ignored)
    assert "without its candidate's own learning_rate 0.0003, min_lr 0" in to_markdown(card_of(vanilla, run))
