"""The scorecard: its numbers against independent computations, its words against what the numbers allow."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.evidence.comparison import Scorecard, build_scorecard
from eval.evidence.intervals import Interval, holm, paired_interval
from eval.evidence.results import load_run
from eval.scorecard import load_runs, main, to_markdown

MakeRun = Callable[..., Path]


def card_of(*folders: Path, baseline: str | None = None) -> Scorecard:
    return build_scorecard(load_runs(folders), baseline)


def verdict_on(card: Scorecard, name: str) -> str:
    return card.rows.set_index("name").loc[name, "verdict"]


def score_of(card: Scorecard, name: str, metric: str) -> pd.Series:
    return card.scores.set_index(["name", "metric"]).loc[(name, metric)]


def documents(seed: int, shift: float, noise: float = 20.0) -> pd.DataFrame:
    """200 documents of uneven length, `shift` nats a token above 5, with noise of their own for each seed."""
    tokens = np.random.default_rng(0).integers(20, 1500, 200)
    loss = tokens * (5 + shift) + noise * np.random.default_rng(seed).standard_normal(200)
    return pd.DataFrame(
        {"document": np.arange(200), "tokens": tokens, "bytes": 4 * tokens + np.arange(200), "loss": loss}
    )


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


# Intervals


def test_interval_over_seeds_is_the_paired_t_interval() -> None:
    candidate, baseline = [5.31, 5.28, 5.35, 5.30], [5.36, 5.35, 5.37, 5.38]
    ours = paired_interval(np.subtract(candidate, baseline))
    theirs = stats.ttest_rel(candidate, baseline)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-12)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-12)
    assert ours.difference == pytest.approx(-0.055)


def test_interval_over_documents_agrees_with_a_bootstrap() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(20, 1500, 400)
    difference = tokens * rng.normal(-0.01, 0.05, 400)
    drawn = rng.integers(0, 400, (5000, 400))
    bootstrap = np.quantile(difference[drawn].sum(1) / tokens[drawn].sum(1), [0.025, 0.975])
    ours = paired_interval(difference, tokens)
    assert ours.difference == pytest.approx(difference.sum() / tokens.sum())
    assert (ours.low, ours.high) == pytest.approx(bootstrap, abs=0.08 * (ours.high - ours.low))


def test_interval_over_documents_covers_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        tokens = np.ceil(rng.lognormal(6, 1, 150))
        ours = paired_interval(tokens * rng.normal(0.02, 0.1, 150), tokens)
        covered += ours.low <= 0.02 <= ours.high
    assert 0.93 <= covered / 1000 <= 0.97


def test_identical_pairs_are_no_difference() -> None:
    assert paired_interval([0.0, 0.0]) == Interval(difference=0, low=0, high=0, p_value=1, n=2)


def test_holm_is_the_textbook_procedure() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


# What the scorecard makes of runs


def test_seeds_give_differences_and_an_interval(make_run: MakeRun) -> None:
    baseline, candidate = [5.40, 5.42, 5.41], [5.35, 5.36, 5.37]
    folders = [make_run("vanilla", seed, val_loss=loss) for seed, loss in enumerate(baseline)]
    folders += [make_run("rmsnorm", seed, val_loss=loss) for seed, loss in enumerate(candidate)]
    card = card_of(*reversed(folders))
    score = score_of(card, "rmsnorm", "val_loss")
    expected = stats.ttest_rel(candidate, baseline).confidence_interval(0.95)
    assert (score["low"], score["high"]) == pytest.approx(tuple(expected))
    assert (score["interval"], score["n"]) == ("seeds", 3)
    assert score["value"] == pytest.approx(np.mean(candidate))
    assert score["seed_sd"] == pytest.approx(np.std(candidate, ddof=1))
    assert verdict_on(card, "rmsnorm") == "better"
    assert card.headline.startswith("rmsnorm is better than vanilla: -0.0500 nats a token, 95 % interval [")
    assert list(card.rows["name"]) == ["rmsnorm", "vanilla"]
    assert verdict_on(card_of(*folders, baseline="rmsnorm"), "vanilla") == "worse"


def test_noise_is_called_noise(make_run: MakeRun) -> None:
    folders = [make_run("vanilla", seed, val_loss=loss) for seed, loss in enumerate([5.40, 5.42])]
    folders += [make_run("rmsnorm", seed, val_loss=loss) for seed, loss in enumerate([5.38, 5.43])]
    card = card_of(*folders)
    assert verdict_on(card, "rmsnorm") == "within noise"
    assert card.headline.startswith("No variant is shown to be better than vanilla.")


def test_several_comparisons_need_stronger_evidence(make_run: MakeRun) -> None:
    losses = [5.40, 5.41, 5.42]
    folders = [make_run("vanilla", seed, val_loss=loss) for seed, loss in enumerate(losses)]
    for name in "abcd":  # p = 0.038 alone
        shifted = [loss - shift for loss, shift in zip(losses, (0.01, 0.02, 0.02), strict=True)]
        folders += [make_run(name, seed, val_loss=loss) for seed, loss in enumerate(shifted)]
    assert verdict_on(card_of(*folders[:6]), "a") == "better"
    assert verdict_on(card_of(*folders), "a") == "within noise once corrected for 4 comparisons"


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


def test_items_answered_alike_claim_no_certainty(make_run: MakeRun) -> None:
    items = pd.DataFrame({"task": "piqa", "doc_id": range(30), "metric": "acc", "value": 0.0})
    tasks = {"piqa": {"acc": 0.0, "acc_stderr": 0.0}}
    card = card_of(*(make_run(name, tasks=tasks, items=items) for name in ("vanilla", "rmsnorm")))
    assert pd.isna(score_of(card, "rmsnorm", "piqa_acc")["low"])


def test_strings_among_the_results_are_left_out(make_run: MakeRun) -> None:
    tasks = {"wikitext": {"word_perplexity": 44.75, "word_perplexity_stderr": "N/A", "other": math.nan}}
    run = load_run(make_run(tasks=tasks))
    assert run.scores == {"wikitext": {"word_perplexity": 44.75}}
    assert "44.75" in to_markdown(card_of(run.folder))


def test_columns_that_no_run_has_are_left_out(make_run: MakeRun) -> None:
    text = to_markdown(card_of(make_run(tasks={"sample_lastword": {"perplexity": 9.5, "acc": 0.25}})))
    assert "sample last-word ppl" in text and "PIQA" not in text and "seed sd |" not in text


def test_bits_a_byte_stand_beside_nats_a_token(make_run: MakeRun) -> None:
    baseline, candidate = [5.40, 5.42, 5.41], [5.35, 5.36, 5.37]
    tasks = {"wikitext": {"word_perplexity": 44.75, "bits_per_byte": 1.1832}}
    folders = [make_run("vanilla", n, val_loss=loss, tasks=tasks) for n, loss in enumerate(baseline)]
    folders += [make_run("rmsnorm", n, val_loss=loss) for n, loss in enumerate(candidate)]
    card = card_of(*folders)
    nats, bits = (score_of(card, "rmsnorm", metric) for metric in ("val_loss", "val_bits_per_byte"))
    for key in ("value", "seed_sd", "difference", "low", "high"):
        assert bits[key] == pytest.approx(0.32 * nats[key])
    assert (bits["interval"], bits["n"], bits["p_value"]) == ("seeds", 3, nats["p_value"])
    assert card.headline.startswith("rmsnorm is better than vanilla: -0.0500 nats a token")
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
    assert card.headline.startswith("vanilla bytes is better than vanilla gpt2: -0.0160 bits a byte, 95 %")
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


def test_among_tokenizers_a_variant_is_compared_with_the_baseline_of_its_own(make_run: MakeRun) -> None:
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
    assert any("Not the same tokenizer" in problem and "bits a byte" in problem for problem in card.problems)
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


# What must be said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"val_fingerprint": "other", "val_text_fingerprint": "other"}, "validation set"),
        ({"tokens": 819200}, "number of trained tokens"),
        ({"model": "12L 12H 768d"}, "model size"),
        ({"precision": "fp32"}, "precision"),
        ({"steps": 100}, "number of steps"),
    ],
)
def test_runs_of_another_setting_are_not_compared(make_run: MakeRun, change: dict, said: str) -> None:
    card = card_of(make_run("vanilla"), make_run("rmsnorm", **change))
    name = next(name for name in card.rows["name"] if name.startswith("rmsnorm"))
    assert verdict_on(card, name).startswith(f"not comparable, no vanilla run has the same {said}")
    assert any(problem.startswith(f"Not the same {said}") for problem in card.problems)
    assert card.scores["difference"].isna().all()


def test_another_data_seed_is_no_pair(make_run: MakeRun) -> None:
    card = card_of(make_run("vanilla"), make_run("rmsnorm", data_seed=7))
    assert verdict_on(card, "rmsnorm") == "not comparable, no vanilla run has the same data seed"


def test_another_number_of_processes_is_said_but_compared(make_run: MakeRun) -> None:
    card = card_of(make_run("vanilla"), make_run("rmsnorm", world_size=1))
    assert any("number of processes (2 in vanilla; 1 in rmsnorm)" in problem for problem in card.problems)
    assert score_of(card, "rmsnorm", "val_loss")["difference"] == 0


def test_a_mode_gets_its_own_row_and_baseline(make_run: MakeRun) -> None:
    folders = [
        make_run(variant, precision=mode, folder=f"{variant}_{mode}", val_loss=loss)
        for (variant, mode), loss in {
            ("vanilla", "bf16"): 5.4,
            ("vanilla", "fp32"): 5.3,
            ("rmsnorm", "bf16"): 5.1,
            ("rmsnorm", "fp32"): 5.2,
        }.items()
    ]
    card = card_of(*folders)
    assert score_of(card, "rmsnorm bf16", "val_loss")["difference"] == pytest.approx(-0.3)
    assert score_of(card, "rmsnorm fp32", "val_loss")["difference"] == pytest.approx(-0.1)


def test_the_same_seed_twice_is_not_two_seeds(make_run: MakeRun) -> None:
    folders = [make_run("vanilla"), make_run("rmsnorm", folder="first"), make_run("rmsnorm", folder="second")]
    card = card_of(*folders)
    assert sorted(card.rows["name"]) == [f"rmsnorm [{folders[1]}]", f"rmsnorm [{folders[2]}]", "vanilla"]
    assert set(card.rows["seeds"]) == {1}


@pytest.mark.parametrize("status", ["diverged", "running", "interrupted", "failed"])
def test_an_unfinished_run_is_shown_and_does_not_count(make_run: MakeRun, status: str) -> None:
    stopped = make_run("rmsnorm", 1, status=status, step=60, val_loss=None)
    finished = make_run("rmsnorm", 2, val_loss=5.3)
    card = card_of(make_run("vanilla", 1), make_run("vanilla", 2), stopped, finished)
    rows = card.rows.set_index("name")
    assert rows.loc["rmsnorm", "status"] == f"1 {status}, 1 finished"
    assert rows.loc["rmsnorm", "val_loss"] == 5.3
    assert score_of(card, "rmsnorm", "val_loss")["seeds"] == 1
    assert any(status in problem for problem in card.problems)
    assert ("diverged" in rows.loc["rmsnorm", "verdict"]) == (status == "diverged")
    alone = card_of(make_run("vanilla", 3), stopped)
    assert verdict_on(alone, "rmsnorm") == f"{status} at step 60 of 200"
    assert status in to_markdown(alone)


def test_nothing_finished_is_said(make_run: MakeRun) -> None:
    card = card_of(make_run(status="running", val_loss=None))
    assert card.headline == "No run has finished yet."
    assert "running" in to_markdown(card)


def test_a_bare_summary_still_has_its_row(make_run: MakeRun, tmp_path: Path) -> None:
    (bare := tmp_path / "bare").mkdir()
    (bare / "summary.json").write_text('{"status": "running", "variant": "rmsnorm"}')
    card = card_of(make_run("vanilla"), bare)
    assert verdict_on(card, "rmsnorm unknown unknown") == "running"
    assert "rmsnorm unknown unknown" in to_markdown(card)


def test_limits_floors_and_skips_are_said(make_run: MakeRun) -> None:
    tasks = {"piqa": {"acc": 0.6, "acc_stderr": 0.1}}
    text = to_markdown(card_of(make_run(val_loss=7.5, tasks=tasks, limit=20, skipped_steps=3)))
    assert "limit of 20" in text and "does not beat the unigram model" in text and "skipped 3 steps" in text
    assert "uniform 10.825, unigram 7.310" in text


def test_a_run_without_the_preflight_check_is_said(make_run: MakeRun) -> None:
    checked = make_run("vanilla", preflight="passed with 0 warnings")
    text = to_markdown(card_of(checked, make_run("mine", preflight="skipped")))
    assert "was trained without the pre-flight check (--skip_preflight)" in text
    assert text.count("--skip_preflight") == 1


def test_two_versions_of_a_candidate_file_are_two_rows(make_run: MakeRun) -> None:
    runs = [make_run("vanilla", seed) for seed in (1, 2)]
    first, again = (make_run("mine", seed, design_fingerprint="a" * 64) for seed in (1, 2))
    edited = make_run("mine", 1, folder="edited", design_fingerprint="b" * 64)
    assert "mine aaaaaaaa" not in to_markdown(card_of(*runs, first, again))
    text = to_markdown(card_of(*runs, first, again, edited))
    assert "mine aaaaaaaa" in text and "mine bbbbbbbb" in text


# The command


def test_csv_and_json_keep_full_precision(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    losses = [1 / 3 + 5, math.pi + 2]
    folders = [make_run("vanilla", val_loss=losses[0]), make_run("rmsnorm", val_loss=losses[1])]
    folders.append(make_run("post", val_loss=None, status="diverged", parameters=None))
    assert main([*map(str, folders), "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    scores = {row["name"]: row["scores"] for row in content["rows"]}
    assert scores["vanilla"]["val_loss"]["value"] == losses[0]
    assert scores["rmsnorm"]["val_loss"]["difference"] == losses[1] - losses[0]
    assert scores["post"] == {} and content["baseline"] == "vanilla"
    assert scores["rmsnorm"]["val_bits_per_byte"]["value"] == 0.32 * losses[1]
    assert content["yardstick"] == "val_loss" and content["floors"]["gpt2"]["unigram"] == 7.31
    assert main([*map(str, folders), "--format", "csv"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("name")
    values = table.loc["rmsnorm"].set_index(["metric", "unit"])["value"]
    assert values["val_loss", "nats/token"] == losses[1]
    assert values["val_bits_per_byte", "bits/byte"] == 0.32 * losses[1]
    assert table.loc["post", "status"] == "diverged at step 200 of 200"


def test_markdown_columns_are_aligned(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(make_run("vanilla")), str(make_run("a|b"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index("**Scores**") + 2 :][:4]
    assert len({len(line) for line in table}) == 1
    assert any("a\\|b" in line for line in table)


def test_bad_input_is_one_sentence_and_status_2(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("vanilla")
    (empty := tmp_path / "empty").mkdir()
    (broken := tmp_path / "broken").mkdir()
    (broken / "summary.json").write_text("{")
    (partial := tmp_path / "partial").mkdir()
    (partial / "summary.json").write_text('{"status": "finished"}')
    for arguments, said in (
        ([str(tmp_path / "none")], "is not a folder"),
        ([str(empty)], "holds no summary.json"),
        ([str(broken)], "not valid JSON"),
        ([str(partial)], "lacks variant"),
        ([str(run), "--baseline", "vanila"], "did you mean vanilla?"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_a_metrics_line_cut_by_a_kill_is_left_out(make_run: MakeRun) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert list(load_run(run).train["step"]) == list(range(1, 201))
    assert list(load_run(run).val["step"]) == [50, 100, 150, 200]
