"""A judgment from check to verdict: what it trains, what it reuses, how it ends, and what it writes down."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from data import DataConfig, open_data
from eval.judging.commands import Ended
from eval.judging.judgment import EXIT_STATUS, KEYS, judge, refusal
from eval.judging.request import read_judge
from eval.judging.verdict import describe
from model.errors import UserError
from training.run.reader import read_recipe

from .judged import LOSSES, NORM, MadeUp, judged, ledger_of, make_judged, words

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_judged(tmp_path)


def test_a_verdict_is_the_paired_interval_over_the_seeds(folder: Path) -> None:
    start = MadeUp()
    found = judged(folder, start)
    assert start.trained == [(name, seed) for seed in (1, 2, 3) for name in ("mine+pre", "vanilla")]
    assert (found["status"], found["exit_status"], found["verdict"]["word"]) == ("judged", 0, "better")
    differences = np.array([LOSSES["mine+pre", s] - LOSSES["vanilla", s] for s in (1, 2, 3)])
    low, high = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert high < 0
    difference = found["difference"]
    assert [difference[key] for key in ("mean", "low", "high")] == pytest.approx(
        [differences.mean(), low, high]
    )
    assert difference["p_value"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert [pair["difference"] for pair in found["seeds"]] == pytest.approx(differences)
    assert found["verdict"]["sentence"].startswith("mine+pre against vanilla: better (-0.1000 nats per token")
    assert found["cost"]["parameters"]["candidate"] == 1048 and found["cost"]["tokens_per_s"]["ratio"] == 1
    assert found["evaluation"]["val_bits_per_byte"]["difference"] == pytest.approx(1.5 * differences.mean())
    assert found["ledger"] == {"file": str(folder / "runs" / "ledger.jsonl"), "entries": 1, "looks": 1}
    assert "1 look" in found["verdict"]["looks"] and "all of them" in found["verdict"]["looks"]
    printed = describe(found).splitlines()
    assert (
        printed[0] == found["verdict"]["sentence"]
        and "flops per token: 1.000 times the baseline's" in printed
    )
    assert "seed 2: 2.4200 against 2.5100 nats per token (-0.0900)" in printed


def test_every_key_of_the_verdict_is_documented_and_there(folder: Path) -> None:
    found = judged(folder, MadeUp(), "--seeds", "2")
    assert list(found) == list(KEYS) == list(refusal("no"))
    page = (ROOT / "docs" / "judge.md").read_text()
    inner = {f"{key}.{name}" for key, value in found.items() if isinstance(value, dict) for name in value}
    inner -= {key for key in inner if key.partition(".")[0] in ("changes", "settings", "evaluation", "cost")}
    named = {key.partition(".")[2] for key in inner} | {*found, *EXIT_STATUS, *found["seeds"][0]}
    assert len(named) > 50 and [key for key in sorted(named) if f"`{key}`" not in page] == []
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_given_again_it_trains_nothing_and_adds_no_line(folder: Path) -> None:
    first = judged(folder, MadeUp(), "--seeds", "2")
    start = MadeUp()
    assert judged(folder, start, "--seeds", "2") == first
    assert start.trained == [] and len(ledger_of(folder)) == 1


def test_more_seeds_are_trained_alone_and_are_the_same_look(folder: Path) -> None:
    judged(folder, MadeUp(), "--seeds", "2")
    start = MadeUp()
    found = judged(folder, start, "--seeds", "3")
    assert start.trained == [("mine+pre", 3), ("vanilla", 3)]
    assert found["ledger"]["entries"] == 2 and found["ledger"]["looks"] == 1


@pytest.mark.parametrize(
    ("change", "trained", "looks"),
    [
        (["--baseline", "layernorm_no_bias"], [("layernorm_no_bias", 1), ("layernorm_no_bias", 2)], 2),
        (["--train.steps", "5"], [(name, s) for s in (1, 2) for name in ("mine+pre", "vanilla")], 2),
        (["--ds.optimizer.params.lr", "2e-3"], [(n, s) for s in (1, 2) for n in ("mine+pre", "vanilla")], 1),
        (["--ranks", "2"], [(name, s) for s in (1, 2) for name in ("mine+pre", "vanilla")], 1),
        (["--train.val_every", "2", "--train.keep_checkpoints", "5"], [], 1),
    ],
)
def test_a_run_is_reused_where_it_is_the_same_number_for_number(
    folder: Path, change: list[str], trained: list[Any], looks: int
) -> None:
    judged(folder, MadeUp(), "--seeds", "2")
    start = MadeUp()
    found = judged(folder, start, "--seeds", "2", *change)
    assert start.trained == trained and found["status"] == "judged"
    assert found["ledger"]["looks"] == looks
    assert len(set(found["runs"])) == 4


def test_baselines_are_found_under_any_name_and_not_on_other_data(folder: Path) -> None:
    judged(folder, MadeUp(), "--seeds", "1")
    (folder / "runs" / "recipe_vanilla_seed1").rename(folder / "runs" / "by hand")
    start = MadeUp()
    assert judged(folder, start, "--seeds", "1")["runs"][1] == str(folder / "runs" / "by hand")
    assert start.trained == []
    shutil.copy(folder / "corpus" / "topics.parquet", folder / "corpus" / "more.parquet")
    found = judged(folder, start, "--seeds", "1")
    assert start.trained == [("mine+pre", 1), ("vanilla", 1)]
    assert found["runs"][0] == str(folder / "runs" / "recipe_mine+pre_seed1_2")
    assert found["ledger"]["looks"] == 2


def test_runs_of_an_older_normlab_are_found_by_what_it_knew_of_their_data(folder: Path) -> None:
    first = judged(folder, MadeUp(), "--seeds", "1")
    corpus, _ = open_data(DataConfig(**read_recipe(Path(first["runs"][0]))["data"]))
    for run in first["runs"]:
        file = Path(run, "summary.json")
        summary = json.loads(file.read_text())
        assert summary["data_fingerprint"] == corpus.fingerprint
        file.write_text(json.dumps(summary | {"data_fingerprint": corpus.fingerprints[1]}))
    start = MadeUp()
    assert judged(folder, start, "--seeds", "1")["runs"] == first["runs"]
    assert start.trained == []


def test_an_edited_candidate_is_another_look_and_training_code_is_not(folder: Path) -> None:
    judged(folder, MadeUp(), "--seeds", "1")
    (folder / "mine.py").write_text(NORM + "\nbatch = 5\nprint(batch)\n")
    start = MadeUp()
    assert judged(folder, start, "--seeds", "1")["ledger"] | {"file": ""} == {
        "file": "",
        "entries": 2,
        "looks": 1,
    }
    assert start.trained == []
    (folder / "mine.py").write_text(NORM.replace("1e-6", "1e-5"))
    assert judged(folder, start, "--seeds", "1")["ledger"]["looks"] == 2
    assert start.trained == [("mine+pre", 1)]
    files = [entry["candidate"]["files"][0]["sha256"] for entry in ledger_of(folder)]
    assert len(set(files)) == 3


def test_a_candidate_that_was_moved_is_the_same_one(folder: Path) -> None:
    judged(folder, MadeUp(), "--seeds", "1")
    (folder / "elsewhere").mkdir()
    (folder / "mine.py").rename(folder / "elsewhere" / "mine.py")
    start = MadeUp()
    candidate = str(folder / "elsewhere" / "mine.py")
    request = read_judge([*words(folder, "--seeds", "1")[1:], candidate])
    assert judge(request, start, print)["ledger"]["looks"] == 1 and start.trained == []


def test_a_candidate_that_diverges_ends_the_judgment_and_is_a_look(folder: Path) -> None:
    start = MadeUp(status={("mine+pre", 2): "diverged"})
    found = judged(folder, start)
    assert (found["status"], found["exit_status"]) == ("diverged", 3)
    assert "mine+pre diverged with seed 2, at step 2" in found["reason"] and found["verdict"] is None
    assert start.trained[-1] == ("mine+pre", 2) and found["ledger"]["looks"] == 1
    again = MadeUp()
    assert judged(folder, again) == found and again.trained == []
    assert [entry["status"] for entry in ledger_of(folder)] == ["diverged"]


def test_a_baseline_that_diverges_is_not_the_candidates_doing(folder: Path) -> None:
    found = judged(folder, MadeUp(status={("vanilla", 1): "diverged"}))
    assert (found["status"], found["exit_status"]) == ("failed", 1)
    assert "nothing to compare with" in found["reason"] and found["ledger"]["looks"] == 0


def test_what_the_check_refuses_is_written_down_and_no_look(folder: Path) -> None:
    checks = [
        {"name": "causality.model", "status": "fail", "detail": "sees the future"},
        {"name": "numerics.error", "status": "warn", "detail": "large"},
    ]
    start = MadeUp(preflight={"passed": False, "checks": checks})
    found = judged(folder, start)
    assert (found["status"], found["exit_status"]) == ("refused_by_preflight", 1)
    assert found["reason"].endswith("refuses mine+pre: causality.model: sees the future")
    assert found["preflight"]["fail"] == [{"name": "causality.model", "detail": "sees the future"}]
    assert start.commands == ["preflight"] and found["ledger"]["looks"] == 0
    (entry,) = ledger_of(folder)
    assert entry["status"] == "refused_by_preflight" and entry["data"]["data_fingerprint"]


def test_a_failure_says_why_and_the_same_command_goes_on(folder: Path) -> None:
    failing = MadeUp(status={("mine+pre", 1): "failed"})
    found = judged(folder, failing, "--seeds", "1")
    assert (found["status"], found["exit_status"]) == ("failed", 1)
    assert found["reason"].endswith("RuntimeError: burnt")
    start = MadeUp()
    assert judged(folder, start, "--seeds", "1")["status"] == "judged"
    assert start.folders[0] == failing.folders[0]
    assert [entry["status"] for entry in ledger_of(folder)] == ["failed", "judged"]


def test_an_interrupted_judgment_leaves_no_line_and_goes_on(folder: Path) -> None:
    stopped = MadeUp(status={("vanilla", 1): "interrupted"})
    found = judged(folder, stopped, "--seeds", "2")
    assert (found["status"], found["exit_status"]) == ("interrupted", 75) and ledger_of(folder) == []
    start = MadeUp()
    assert judged(folder, start, "--seeds", "2")["status"] == "judged"
    assert start.trained == [("vanilla", 1), ("mine+pre", 2), ("vanilla", 2)]
    assert start.folders[0] == stopped.folders[-1]


def test_what_train_py_refuses_is_refused_with_its_sentence(folder: Path) -> None:
    found = judged(folder, MadeUp(status={("mine+pre", 1): "mistake"}))
    assert (found["status"], found["exit_status"]) == ("refused", 2)
    assert found["reason"].endswith("seed1: it cannot be") and ledger_of(folder) == []


def test_without_an_evaluation_there_is_a_verdict_with_a_problem(folder: Path) -> None:
    found = judged(folder, MadeUp(evaluation=Ended(2, "error: no network\n")), "--seeds", "2")
    assert found["status"] == "judged"
    assert sum(problem.endswith("was not evaluated: no network") for problem in found["problems"]) == 4


def test_a_reused_run_without_a_checkpoint_is_compared_all_the_same(folder: Path) -> None:
    first = judged(folder, MadeUp(), "--seeds", "2")
    shutil.rmtree(folder / "runs" / "recipe_vanilla_seed1" / "checkpoints")
    found = judged(folder, MadeUp(), "--seeds", "2")
    assert found["difference"] == first["difference"]
    assert sum("has no complete checkpoint" in problem for problem in found["problems"]) == 1


def test_a_ledger_that_cannot_be_read_stops_before_anything_is_trained(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "ledger.jsonl").write_text('{"half":')
    start = MadeUp()
    with pytest.raises(UserError, match=r"ledger\.jsonl line 1 is not a JSON object"):
        judged(folder, start)
    assert start.commands == []


def test_one_seed_gets_no_verdict_on_noise(folder: Path) -> None:
    found = judged(folder, MadeUp(), "--seeds", "1")
    assert found["verdict"]["word"] == "not measured" and found["difference"]["low"] is None
