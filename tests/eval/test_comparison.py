"""Differences between runs: their numbers against independent computations, their verdicts against these."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.evidence.comparison import build_scorecard
from eval.evidence.results import read_run, read_runs
from eval.evidence.tables import score_table, to_markdown
from tests.eval.cards import card_of, documents, score_of, verdict_on

MakeRun = Callable[..., Path]


def test_seeds_give_differences_and_an_interval(make_run: MakeRun) -> None:
    baseline, candidate = [5.40, 5.42, 5.41], [5.35, 5.36, 5.37]
    folders = [make_run("vanilla", seed, val_loss=loss) for seed, loss in enumerate(baseline)]
    folders += [make_run("rmsnorm", seed, val_loss=loss) for seed, loss in enumerate(candidate)]
    card = card_of(*reversed(folders))
    score = score_of(card, "rmsnorm", "val_loss")
    expected = stats.ttest_rel(candidate, baseline).confidence_interval(0.95)
    assert (score["low"], score["high"]) == pytest.approx(tuple(expected))
    assert (score["interval"], score["n"], score["documents"]) == ("seeds", 3, 1)
    assert score["value"] == pytest.approx(np.mean(candidate))
    assert score["seed_sd"] == pytest.approx(np.std(candidate, ddof=1))
    assert verdict_on(card, "rmsnorm") == "better"
    assert card.headline.startswith("rmsnorm is better than vanilla: -0.0500 nats per token, 95 % interval [")
    assert list(card.rows["name"]) == ["rmsnorm", "vanilla"]
    assert verdict_on(card_of(*folders, baseline="rmsnorm"), "vanilla") == "worse"


def test_noise_is_called_noise(make_run: MakeRun) -> None:
    folders = [make_run("vanilla", seed, val_loss=loss) for seed, loss in enumerate([5.40, 5.42])]
    folders += [make_run("rmsnorm", seed, val_loss=loss) for seed, loss in enumerate([5.38, 5.43])]
    card = card_of(*folders)
    score = score_of(card, "rmsnorm", "val_loss")
    shown = (
        score["high"] - score["difference"] + stats.norm.ppf(0.8) * 0.03 / 2
    )  # sd 0.03 * 2**0.5 of 2 pairs
    assert verdict_on(card, "rmsnorm") == f"not shown: a difference of {shown:.4f} could have been"
    assert card.headline.startswith("No variant is shown to be better than vanilla.")


def test_several_comparisons_need_stronger_evidence(make_run: MakeRun) -> None:
    losses = np.array([5.40, 5.41, 5.42])
    shifts = {"a": (0.010, 0.013, 0.0125), "b": (0.001, -0.005, 0.004), "c": (-0.006, 0.003, 0.002),
              "d": (0.005, -0.004, 0.0)}  # fmt: skip
    arms = {"vanilla": losses, **{name: losses - of for name, of in shifts.items()}}
    folders = {
        name: [make_run(name, seed, val_loss=loss) for seed, loss in enumerate(of)]
        for name, of in arms.items()
    }
    alone = card_of(*folders["vanilla"], *folders["a"])
    assert verdict_on(alone, "a") == "better" and alone.comparisons == 1
    card = card_of(*(folder for of in folders.values() for folder in of))
    # By hand: the noise that all five share, and scipy's multivariate t for four comparisons with one.
    table = np.array(list(arms.values()))
    apart = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    error = math.sqrt(2 * (apart**2).sum() / (4 * 2) / 3)
    score = score_of(card, "a", "val_loss")
    limit = (score["high"] - score["difference"]) / error
    t = stats.multivariate_t(shape=0.5 + 0.5 * np.eye(4), df=8, seed=0)
    assert t.cdf(np.full(4, limit), lower_limit=np.full(4, -limit)) == pytest.approx(0.95, abs=1e-3)
    assert verdict_on(card, "a") == "better" and card.comparisons == 4
    # As many looks as were taken elsewhere count too.
    many = build_scorecard(read_runs(folders["vanilla"] + folders["a"]), looks=40)
    assert verdict_on(many, "a").startswith("not shown: a difference of ") and many.comparisons == 40


def test_one_seed_never_wins(make_run: MakeRun) -> None:
    vanilla = make_run("vanilla", val_loss=5.0, documents=documents(1, 0.0))
    lower = make_run("rmsnorm", val_loss=4.9, documents=documents(2, -0.1))
    alike = make_run("peri_ln", val_loss=5.0, documents=documents(3, 0.0))
    bare = make_run("bare", val_loss=4.8)
    card = card_of(vanilla, lower, alike, bare)
    score = score_of(card, "rmsnorm", "val_loss")
    ours, theirs = documents(2, -0.1), documents(1, 0.0)
    assert score["difference"] == pytest.approx((ours["loss"] - theirs["loss"]).sum() / ours["tokens"].sum())
    assert (score["interval"], score["n"], score["seeds"]) == ("documents", 200, 1)
    one_seed = "on this validation set; one seed, seed-to-seed noise not measured"
    assert verdict_on(card, "rmsnorm") == f"lower {one_seed}"
    assert verdict_on(card, "peri_ln") == f"no clear difference {one_seed}"
    assert verdict_on(card, "bare") == "one seed and no losses by document, noise not measured"
    assert card.headline.startswith("No variant is shown to be better than vanilla.")
    assert "is better than" not in to_markdown(card)


def test_accuracies_are_compared_item_by_item(make_run: MakeRun) -> None:
    rng = np.random.default_rng(3)
    right = {name: (rng.random(500) < share) * 1.0 for name, share in (("vanilla", 0.3), ("rmsnorm", 0.4))}
    folders = []
    for name, value in right.items():
        items = pd.DataFrame({"task": "hellaswag", "doc_id": range(500), "metric": "acc", "value": value})
        shuffled = items.sample(frac=1, random_state=1 if name == "vanilla" else 2)
        tasks = {"hellaswag": {"acc": value.mean(), "acc_stderr": 0.02, "acc_norm": 0.9}}
        folders.append(make_run(name, tasks=tasks, items=shuffled))
    card = card_of(*folders)
    score = score_of(card, "rmsnorm", "hellaswag_acc")
    expected = stats.ttest_rel(100 * right["rmsnorm"], 100 * right["vanilla"]).confidence_interval(0.95)
    assert (score["low"], score["high"]) == pytest.approx(tuple(expected))
    assert score["value"] == pytest.approx(100 * right["rmsnorm"].mean())
    assert score["standard_error"] == pytest.approx(2.0)
    assert f"{score['value']:.2f} ± 2.00" in to_markdown(card)


def test_any_tasks_metrics_are_columns_by_their_names(make_run: MakeRun) -> None:
    rng = np.random.default_rng(3)
    folders, right = [], {}
    for name in ("vanilla", "rmsnorm"):
        right[name] = (rng.random(50) < 0.4) * 1.0
        tasks = {
            "sea_words": {"exact_match": right[name].mean(), "exact_match_stderr": 0.1, "bleu": 7.25},
            "hellaswag": {"acc": 0.25, "acc_norm": 0.3125, "acc_norm_stderr": 0.01},
            "sea": {"acc": 0.5, "acc_stderr": "N/A"},
        }
        items = {
            "task": "sea_words",
            "doc_id": range(50),
            "metric": "exact_match,first",
            "value": right[name],
        }
        run = make_run(name, tasks=tasks, items=pd.DataFrame(items | {"value": right[name]}))
        file = run / "eval" / "step_00000200" / "results.json"
        text = file.read_text().replace("exact_match,none", "exact_match,first")
        file.write_text(text.replace("exact_match_stderr,none", "exact_match_stderr,first"))
        folders.append(run)
    card = card_of(*folders)
    score = score_of(card, "rmsnorm", "sea_words_exact_match,first")
    expected = stats.ttest_rel(100 * right["rmsnorm"], 100 * right["vanilla"]).confidence_interval(0.95)
    assert (score["low"], score["high"]) == pytest.approx(tuple(expected))
    assert (score["value"], score["standard_error"]) == pytest.approx((100 * right["rmsnorm"].mean(), 10.0))
    assert score_of(card, "rmsnorm", "sea_words_bleu")["value"] == 7.25
    table = score_table(card).iloc[0]
    assert table["HellaSwag norm %"] == "31.25 ± 1.00" and table["HellaSwag %"] == "25.00"
    assert table["sea acc %"] == "50.00" and table["sea_words bleu"] == "7.2500"
    assert list(table.index[-3:]) == ["sea acc %", "sea_words bleu", "sea_words exact_match,first %"]


def test_items_answered_alike_claim_no_certainty(make_run: MakeRun) -> None:
    items = pd.DataFrame({"task": "piqa", "doc_id": range(30), "metric": "acc", "value": 0.0})
    tasks = {"piqa": {"acc": 0.0, "acc_stderr": 0.0}}
    card = card_of(*(make_run(name, tasks=tasks, items=items) for name in ("vanilla", "rmsnorm")))
    assert pd.isna(score_of(card, "rmsnorm", "piqa_acc")["low"])


def test_strings_among_the_results_are_left_out(make_run: MakeRun) -> None:
    tasks = {"wikitext": {"word_perplexity": 44.75, "word_perplexity_stderr": "N/A", "other": math.nan}}
    run = read_run(make_run(tasks=tasks))
    assert run.scores == {"wikitext": {"word_perplexity": 44.75}}
    assert "44.75" in to_markdown(card_of(run.folder))


def test_columns_that_no_run_has_are_left_out(make_run: MakeRun) -> None:
    text = to_markdown(card_of(make_run(tasks={"sample_lastword": {"perplexity": 9.5, "acc": 0.25}})))
    assert "sample last-word ppl" in text and "PIQA" not in text and "seed sd |" not in text
