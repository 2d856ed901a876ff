"""The scorecard: what must be said of runs, and the command."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from eval.evidence.results import read_run
from eval.evidence.tables import to_markdown
from eval.scorecard import main
from tests.eval.cards import card_of, score_of, verdict_on

MakeRun = Callable[..., Path]


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
    failure = "fails in 1 of 2 runs (95 % interval of the rate 1% to 99%); lower over the others"
    assert rows.loc["rmsnorm", "verdict"].startswith(failure) == (status == "diverged")
    alone = card_of(make_run("vanilla", 3), stopped)
    assert verdict_on(alone, "rmsnorm").startswith(f"{status} at step 60 of 200")
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


def test_a_design_that_mixes_tokens_outside_attention_is_marked(make_run: MakeRun) -> None:
    apart = make_run("vanilla", mixes_tokens=False)
    text = to_markdown(card_of(apart, make_run("mine", mixes_tokens=True)))
    assert text.count("mixes tokens outside attention, where data.document_mask does not reach") == 1


def test_two_versions_of_a_candidate_file_are_two_rows(make_run: MakeRun) -> None:
    runs = [make_run("vanilla", seed) for seed in (1, 2)]
    first, again = (make_run("mine", seed, design_fingerprint="a" * 64) for seed in (1, 2))
    edited = make_run("mine", 1, folder="edited", design_fingerprint="b" * 64)
    assert "mine aaaaaaaa" not in to_markdown(card_of(*runs, first, again))
    text = to_markdown(card_of(*runs, first, again, edited))
    assert "mine aaaaaaaa" in text and "mine bbbbbbbb" in text


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
        ([str(tmp_path / "none")], "there is no run folder"),
        ([str(empty)], "holds no summary.json"),
        ([str(broken)], "not valid JSON"),
        ([str(partial)], "lacks variant"),
        ([str(run), "--baseline", "vanila"], "did you mean 'vanilla'?"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_a_metrics_line_cut_by_a_kill_is_left_out(make_run: MakeRun) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert list(read_run(run).train["step"]) == list(range(1, 201))
    assert list(read_run(run).val["step"]) == [50, 100, 150, 200]
