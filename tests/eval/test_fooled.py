"""Runs that once fooled a verdict, each with the sentence that it deserves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.evidence.tables import setting_table, to_markdown
from model import VARIANTS
from tests.eval.cards import card_of, documents, score_of, verdict_on

MakeRun = Callable[..., Path]
LOSSES = {"vanilla": [5.40, 5.41, 5.42], "rmsnorm": [5.30, 5.312, 5.321]}


def configs(
    variant: str,
    model: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    **sections: Any,
) -> dict[str, Any]:
    """`recipe` and `engine` of `make_run`."""
    recipe = {
        "model": VARIANTS[variant].design | {"block_size": 256} | (model or {}),
        "schedule": {"warmup": 10, "steps": 200} | sections.pop("schedule", {}),
        **sections,
    }
    params = {"lr": 6e-4, "betas": [0.9, 0.95], "weight_decay": 0.1} | (optimizer or {})
    raw = {"train_batch_size": 8, "gradient_clipping": 1.0, "optimizer": {"type": "AdamW", "params": params}}
    return {"recipe": recipe, "engine": raw | (engine or {})}


@pytest.fixture
def pairs_with(make_run: MakeRun) -> Callable[..., list[Path]]:
    """Three paired seeds of vanilla and of a better rmsnorm, which was trained with these changes."""

    def build(**changes: Any) -> list[Path]:
        return [
            make_run(name, seed, val_loss=loss, **configs(name, **(changes if name == "rmsnorm" else {})))
            for name, losses in LOSSES.items()
            for seed, loss in enumerate(losses)
        ]

    return build


def test_alike_it_is_better(pairs_with: Callable[..., list[Path]]) -> None:
    card = card_of(*pairs_with())
    assert verdict_on(card, "rmsnorm") == "better" and setting_table(card).empty


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer": {"lr": 3.6e-3}}, "learning rate (0.0036 against 0.0006)"),
        ({"optimizer": {"weight_decay": 0.0}}, "weight decay (0 against 0.1)"),
        ({"optimizer": {"betas": [0.9, 0.999]}}, "optimizer (betas=[0.9, 0.999], type=adamw against betas="),
        ({"engine": {"gradient_clipping": 0.5}}, "gradient clipping (0.5 against 1)"),
        ({"schedule": {"warmup": 40}}, "schedule (cosine, warm-up of 40 steps"),
        ({"schedule": {"shape": "wsd"}}, "schedule (wsd, warm-up of 10 steps"),
        ({"schedule": {"floor": 0.0}}, "schedule (cosine, warm-up of 10 steps by the normlab formula, to 0 "),
    ],
)
def test_another_rate_is_no_verdict_on_the_design(
    pairs_with: Callable[..., list[Path]], change: dict[str, Any], said: str
) -> None:
    card = card_of(*pairs_with(**change))
    verdict = verdict_on(card, "rmsnorm")
    assert verdict.startswith(f"lower, but with another {said}") and verdict.endswith(
        "no verdict on the design"
    )
    assert score_of(card, "rmsnorm", "val_loss")["high"] < 0
    assert card.headline.startswith("No variant is shown to be better than vanilla.")
    title = said.partition(" (")[0]
    assert list(setting_table(card)["setting"]) == [title]
    assert any(problem.startswith(f"Not the same {title} (") for problem in card.problems)


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ({"model": {"dropout": 0.1}}, "fixed parts of the model"),
        ({"model": {"bias": False}}, "fixed parts of the model"),
        ({"model": {"block_size": 512}}, "block size"),
        ({"data": {"lanes": 16}}, "order and packing of the data"),
        ({"data": {"packing": "best_fit"}}, "order and packing of the data"),
        ({"data": {"shuffle_window": 4}}, "order and packing of the data"),
        ({"engine": {"train_batch_size": 16}}, "batch size"),
        ({"engine": {"data_types": {"grad_accum_dtype": "bf16"}}}, "numerics"),
        ({"engine": {"a_key_of_tomorrow": 1}}, "other settings"),
    ],
)
def test_other_settings_are_not_comparable(
    pairs_with: Callable[..., list[Path]], change: dict[str, Any], title: str
) -> None:
    card = card_of(*pairs_with(**change))
    name = next(name for name in card.rows["name"] if name.startswith("rmsnorm"))
    assert verdict_on(card, name).startswith(f"not comparable, no vanilla run has the same {title}")
    assert title in list(setting_table(card)["setting"])


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"val_every": 7, "checkpoint_every": 9}, "tracking": {"project": "mine"}},
        {"data": {"workers": 4, "prefetch": 8, "cache_dir": "cache"}},
        {"engine": {"steps_per_print": 3, "wall_clock_breakdown": True}},
        {"engine": {"fp16": {"enabled": False, "loss_scale": 2}}},
    ],
)
def test_what_does_not_enter_the_numbers_may_differ(
    pairs_with: Callable[..., list[Path]], change: dict[str, Any]
) -> None:
    card = card_of(*pairs_with(**change))
    assert verdict_on(card, "rmsnorm") == "better" and not card.problems and setting_table(card).empty


def test_rounding_is_said_and_compared(pairs_with: Callable[..., list[Path]]) -> None:
    card = card_of(*pairs_with(train={"compile": False}, engine={"zero_optimization": {"stage": 1}}))
    assert verdict_on(card, "rmsnorm") == "better"
    assert [problem.partition(" (")[0] for problem in card.problems] == [
        "Not the same compile mode", "Not the same engine",
    ]  # fmt: skip
    assert "**Not trained alike**" in to_markdown(card)


@pytest.mark.parametrize("change", [{"model": {"bias": False}}, {"model": {"block_size": 512}}])
def test_other_settings_are_no_seeds_of_one_design(make_run: MakeRun, change: dict[str, Any]) -> None:
    runs = [
        make_run("rmsnorm", 1, **configs("rmsnorm")),
        make_run("rmsnorm", 2, **configs("rmsnorm", **change)),
    ]
    card = card_of(*runs)
    assert len(card.rows) == 2 and set(card.rows["seeds"]) == {1}


def test_a_seed_that_blew_up_is_a_failure_and_no_noise(make_run: MakeRun) -> None:
    vanilla = [make_run("vanilla", seed, val_loss=3.2 + 0.002 * seed) for seed in range(3)]
    losses = [3.19, 7.5, 3.193]
    mine = [make_run("mine", seed, val_loss=loss) for seed, loss in enumerate(losses)]
    card = card_of(*vanilla, *mine)
    low, high = stats.beta.ppf([0.025, 0.975], [1, 2], [3, 2])  # Clopper and Pearson's, of 1 in 3
    assert verdict_on(card, "mine") == (
        f"fails in 1 of 3 runs (95 % interval of the rate {low:.0%} to {high:.0%}); lower over the others, "
        "which is no verdict on the design"
    )
    assert score_of(card, "mine", "val_loss")["value"] == pytest.approx((3.19 + 3.193) / 2)
    assert any("ended at 7.500 nats per token, far above its other seeds" in one for one in card.problems)
    assert card.headline.startswith("No variant is shown to be better than vanilla.")


def test_a_run_above_the_floor_or_with_a_spike_fails_too(make_run: MakeRun) -> None:
    vanilla = make_run("vanilla", val_loss=5.4)
    above = make_run("above", val_loss=7.4)
    spiked = make_run("spiked", val_loss=5.3)
    lines = (spiked / "metrics.jsonl").read_text().splitlines()
    (spiked / "metrics.jsonl").write_text(
        "\n".join(line.replace('"loss": 5', '"loss": 6') if '"step": 19' in line else line for line in lines)
    )
    card = card_of(vanilla, above, spiked)
    assert "above the unigram model" in "".join(card.problems)
    for name in ("above", "spiked"):
        assert "fails in 1 of 1 runs" in verdict_on(card, name)
    # where the baseline has not learnt either, nothing is said
    alone = card_of(make_run("vanilla", 2, val_loss=7.4), make_run("other", 2, val_loss=7.35))
    assert "fails" not in verdict_on(alone, "other")


def test_a_gain_on_these_documents_alone_is_not_shown(make_run: MakeRun) -> None:
    """Every seed gains on the same few documents: certain on them, and luck with other text."""
    rng = np.random.default_rng(0)
    lucky = pd.Series(0.1 * rng.standard_normal(200) - 0.008)
    runs = []
    for seed in range(5):
        table = documents(1, 0.0, noise=0.0)
        table["loss"] += 0.001 * seed * table["tokens"]
        ours = table.assign(loss=table["loss"] + (lucky + 0.0002 * rng.standard_normal()) * table["tokens"])
        for name, of in (("vanilla", table), ("mine", ours)):
            loss = of["loss"].sum() / of["tokens"].sum()
            runs.append(make_run(name, seed, val_loss=loss, documents=of))
    card = card_of(*runs)
    differences = [
        card.runs.set_index(["name", "init_seed"])["val_loss"][name, seed]
        for name in ("mine", "vanilla") for seed in range(5)
    ]  # fmt: skip
    over_seeds = stats.ttest_rel(differences[:5], differences[5:]).confidence_interval(0.95)
    assert over_seeds.high < 0 or over_seeds.low > 0  # what seeds alone would have called a verdict
    assert verdict_on(card, "mine").startswith("not shown: a difference of ")
    assert score_of(card, "mine", "val_loss")["interval"] == "seeds and documents"


def test_two_equal_differences_are_no_certainty(make_run: MakeRun) -> None:
    runs = [
        make_run(name, seed, val_loss=3 + 0.1 * seed - shift)
        for name, shift in (("vanilla", 0), ("mine", 1e-6))
        for seed in range(2)
    ]
    verdict = verdict_on(card_of(*runs), "mine")
    assert verdict == "not shown: nothing varied between the pairs, so their noise is not measured"


def test_equivalence_is_a_verdict_of_its_own(make_run: MakeRun) -> None:
    shifts = [0.0002, -0.0003, 0.0001, -0.0001, 0.0002]
    runs = [
        make_run(name, seed, val_loss=3 + 0.1 * seed + (shift if name == "mine" else 0))
        for name in ("vanilla", "mine")
        for seed, shift in enumerate(shifts)
    ]
    card = card_of(*runs)
    assert verdict_on(card, "mine") == "equivalent within 0.003 nats per token"
    assert max(abs(score_of(card, "mine", "val_loss")[["low", "high"]])) < 0.003


def test_the_luckiest_single_run_of_a_sweep_wins_nothing(make_run: MakeRun) -> None:
    rates = [3e-4, 6e-4, 1.2e-3]
    four = documents(1, 0.0).head(4)
    vanilla = make_run("vanilla", documents=four, **configs("vanilla"))
    sweep = [
        make_run(
            "rmsnorm", folder=f"rate{n}", val_loss=5.4 - 0.1 * n,
            documents=four.assign(loss=four["loss"] - 0.1 * n * four["tokens"]),
            **configs("rmsnorm", optimizer={"lr": rate}),
        )
        for n, rate in enumerate(rates)
    ]  # fmt: skip
    card = card_of(vanilla, *sweep)
    assert card.headline.startswith("No variant is shown to be better than vanilla.")
    assert not card.rows["verdict"].str.startswith("better").any()


def test_perplexities_have_intervals_and_accuracies_hold_together(make_run: MakeRun) -> None:
    rng = np.random.default_rng(3)
    runs, kept = [], {}
    for name in ("vanilla", "a", "b"):
        right = (rng.random(300) < 0.3) * 1.0
        nats = -rng.gamma(2, 1, 300) + (0.5 if name == "a" else 0)
        kept[name] = right, nats
        rows = {"task": "lambada_openai", "doc_id": np.arange(300), "weight": 1.0}
        items = pd.concat([
            pd.DataFrame({**rows, "metric": "acc", "value": right}),
            pd.DataFrame({**rows, "metric": "perplexity", "value": nats}),
            pd.DataFrame({**rows, "task": "piqa", "metric": "acc", "value": right}),
        ])  # fmt: skip
        ppl = float(np.exp(-nats.mean()))
        tasks = {"lambada_openai": {"perplexity": ppl, "acc": right.mean()}, "piqa": {"acc": right.mean()}}
        runs.append(make_run(name, tasks=tasks, items=items))
    card = card_of(*runs)
    score = score_of(card, "a", "lambada_ppl")
    theirs, ours = (np.exp(-kept[name][1].mean()) for name in ("vanilla", "a"))
    assert score["difference"] == pytest.approx(ours - theirs) and score["high"] < 0
    assert score["interval"] == "items"
    # Two comparisons share the baseline, so each interval is wider than alone.
    alone = card_of(runs[0], runs[1])
    width = [score_of(of, "a", "piqa_acc")[["low", "high"]].diff().iloc[1] for of in (card, alone)]
    assert width[0] > 1.05 * width[1]
