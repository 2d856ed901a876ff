"""Runs of several tokenizers: compared in bits per byte where the text is the same, else not at all."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.evidence.tables import to_markdown
from tests.eval.cards import card_of, documents, score_of, verdict_on

MakeRun = Callable[..., Path]


def byte_run(make_run: MakeRun, variant: str = "vanilla", init_seed: int = 1, **changes: object) -> Path:
    """A run of the byte tokenizer over the same text; `val_loss` is still in the nats of the others."""
    bits = 0.32 * changes.pop("val_loss", 5.4)
    known = {"tokenizer": "bytes", "val_fingerprint": "77b0", "val_bits_per_byte": bits}
    known |= {"val_loss": bits * math.log(2), "folder": f"{variant}_bytes_s{init_seed}"}
    return make_run(variant, init_seed, **known | changes)


def without_bits(run: Path) -> Path:
    """Make a run one from before there was a choice of tokenizers."""
    summary = json.loads((run / "summary.json").read_text())
    for key in ("tokenizer", "val_bits_per_byte", "val_text_fingerprint"):
        del summary[key]
    (run / "summary.json").write_text(json.dumps(summary))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("bits_per_byte", None)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_bits_per_byte_stand_beside_nats_per_token(make_run: MakeRun) -> None:
    baseline, candidate = [5.40, 5.42, 5.41], [5.35, 5.36, 5.37]
    tasks = {"wikitext": {"word_perplexity": 44.75, "bits_per_byte": 1.1832}}
    folders = [make_run("vanilla", n, val_loss=loss, tasks=tasks) for n, loss in enumerate(baseline)]
    folders += [make_run("rmsnorm", n, val_loss=loss) for n, loss in enumerate(candidate)]
    card = card_of(*folders)
    nats, bits = (score_of(card, "rmsnorm", metric) for metric in ("val_loss", "val_bits_per_byte"))
    for key in ("value", "seed_sd", "difference", "low", "high"):
        assert bits[key] == pytest.approx(0.32 * nats[key])
    assert (bits["interval"], bits["n"], bits["p_value"]) == ("seeds", 3, nats["p_value"])
    assert card.headline.startswith("rmsnorm is better than vanilla: -0.0500 nats per token")
    text = to_markdown(card)
    assert "1.7152" in text and "-0.0500 [" in text and "-0.0160 [" in text
    assert "WikiText-2 bits/byte" in text and "1.1832" in text
    assert "tokenizer" not in " ".join(card.problems)


def test_tokenizers_are_compared_in_bits_over_seeds(make_run: MakeRun) -> None:
    gpt2, other = [5.40, 5.42, 5.41], [5.35, 5.36, 5.37]
    folders = [make_run("vanilla", seed, val_loss=loss) for seed, loss in enumerate(gpt2)]
    folders += [byte_run(make_run, init_seed=seed, val_loss=loss) for seed, loss in enumerate(other)]
    card = card_of(*folders)
    assert card.baseline == "vanilla gpt2"
    score = score_of(card, "vanilla bytes", "val_bits_per_byte")
    expected = stats.ttest_rel(0.32 * np.array(other), 0.32 * np.array(gpt2)).confidence_interval(0.95)
    assert (score["low"], score["high"]) == pytest.approx(tuple(expected))
    assert (score["interval"], score["n"]) == ("seeds", 3)
    assert pd.isna(score_of(card, "vanilla bytes", "val_loss")["difference"])
    assert verdict_on(card, "vanilla bytes") == "better"
    assert card.headline.startswith("vanilla bytes is better than vanilla gpt2: -0.0160 bits per byte, 95 %")
    assert list(card.rows["name"]) == ["vanilla bytes", "vanilla gpt2"]
    (problem,) = card.problems
    assert problem.startswith("Not the same tokenizer (gpt2 in vanilla gpt2; bytes in vanilla bytes)")


def test_tokenizers_are_compared_in_bits_over_documents(make_run: MakeRun) -> None:
    ours, theirs = documents(2, -0.1), documents(1, 0.0)
    ours["tokens"] *= 4  # as another tokenizer cuts the text
    card = card_of(make_run(documents=theirs), byte_run(make_run, documents=ours))
    score = score_of(card, "vanilla bytes", "val_bits_per_byte")
    difference, size = (ours["loss"] - theirs["loss"]) / math.log(2), ours["bytes"]
    assert score["difference"] == pytest.approx(difference.sum() / size.sum())
    drawn = np.random.default_rng(0).integers(0, 200, (5000, 200))
    sums = difference.to_numpy()[drawn].sum(1) / size.to_numpy()[drawn].sum(1)
    width = score["high"] - score["low"]
    assert (score["low"], score["high"]) == pytest.approx(np.quantile(sums, [0.025, 0.975]), abs=0.08 * width)
    assert (score["interval"], score["n"]) == ("documents", 200)
    assert verdict_on(card, "vanilla bytes").startswith("lower on this validation set; one seed")


def test_a_variant_is_compared_with_the_baseline_of_its_own_tokenizer(make_run: MakeRun) -> None:
    folders = [make_run("vanilla", val_loss=5.4), make_run("rmsnorm", val_loss=5.3)]
    folders += [byte_run(make_run, val_loss=5.2), byte_run(make_run, "rmsnorm", val_loss=5.0)]
    card = card_of(*folders)
    assert score_of(card, "rmsnorm gpt2", "val_loss")["difference"] == pytest.approx(-0.1)
    assert score_of(card, "rmsnorm bytes", "val_loss")["difference"] == pytest.approx(
        -0.2 * 0.32 * math.log(2)
    )
    assert score_of(card, "rmsnorm bytes", "val_bits_per_byte")["difference"] == pytest.approx(-0.2 * 0.32)
    card = card_of(*folders, baseline="vanilla gpt2")
    assert score_of(card, "rmsnorm bytes", "val_bits_per_byte")["difference"] == pytest.approx(-0.4 * 0.32)
    assert pd.isna(score_of(card, "rmsnorm bytes", "val_loss")["difference"])
    assert "| rmsnorm bytes           | " in to_markdown(card)


def test_tokenizers_over_other_texts_are_not_compared(make_run: MakeRun) -> None:
    card = card_of(make_run(), byte_run(make_run, val_text_fingerprint="0ff"))
    said = "not comparable, no vanilla gpt2 run has the same validation text"
    assert verdict_on(card, "vanilla bytes") == said
    assert card.scores["difference"].isna().all()
    assert any(
        "Not the same tokenizer" in problem and "bits per byte" in problem for problem in card.problems
    )
    assert any("Not the same validation set" in problem for problem in card.problems)


def test_an_older_run_is_compared_in_nats(make_run: MakeRun) -> None:
    old, new = without_bits(make_run("vanilla", val_loss=5.4)), make_run("rmsnorm", val_loss=5.3)
    card = card_of(old, new)
    assert score_of(card, "rmsnorm", "val_loss")["difference"] == pytest.approx(-0.1)
    assert card.problems == []
    row = next(line for line in to_markdown(card).splitlines() if line.startswith("| vanilla (baseline)"))
    assert row.split("|")[4:6] == ["     5.4000 ", "               - "]
    alone = card_of(old)
    assert "bits" not in to_markdown(alone).split("**Notes**")[0]


def test_an_older_run_and_another_tokenizer_are_not_compared(make_run: MakeRun) -> None:
    card = card_of(without_bits(make_run("vanilla")), byte_run(make_run))
    said = "not comparable, no vanilla gpt2 run has the same validation set"
    assert verdict_on(card, "vanilla bytes") == said
    assert card.scores["difference"].isna().all()
