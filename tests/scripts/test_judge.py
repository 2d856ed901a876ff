"""scripts/judge.py with the real commands, small: check, train, evaluate, compare, and everything reused."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from eval.judging.commands import Command, Ended
from eval.judging.judgment import KEYS, judge
from eval.judging.request import read_judge
from tests.eval.judged import ledger_of, make_judged, words
from tests.jobs import run, summary_of
from tests.processes import ENVIRONMENT, ROOT


def preflight_main(words: list[str]) -> int:
    from model.preflight.__main__ import main

    return main([*words, "--quick"])  # what the thorough check adds is tested where it is


def eval_main(words: list[str]) -> int:
    from eval.__main__ import main

    return main(words)


class Forked:
    """The commands, forked where a user's are started; keeps which were."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def __call__(self, command: Command, words: Sequence[str], ranks: int = 1) -> Ended:
        self.commands.append(command)
        if command == "train":
            done = run(words, ranks)
        else:
            done = run(words, main=preflight_main if command == "preflight" else eval_main)
        return Ended(done.returncode, done.stderr)


@pytest.mark.slow
def test_a_candidate_is_judged_and_judged_again_from_what_is_there(tmp_path: Path) -> None:
    folder = make_judged(tmp_path)
    start = Forked()
    found = judge(read_judge(words(folder, "--seeds", "2")), start, print)
    assert found["status"] == "judged", found["reason"]
    assert start.commands == ["preflight", *["train"] * 4, *["eval"] * 4]
    assert found["preflight"]["passed"] and found["preflight"]["checks"] > 10
    for pair in found["seeds"]:
        for role in ("candidate", "baseline"):
            summary = summary_of(Path(pair[f"{role}_run"]))
            assert (summary["init_seed"], summary["val_loss"]) == (pair["seed"], pair[role])
    assert (
        found["difference"]["interval_over"] == "2 paired seeds" and found["cost"]["parameters"]["ratio"] < 1
    )
    assert found["cost"]["flops_per_token"]["baseline"] > 0
    assert "was not evaluated" not in " ".join(found["problems"])
    (entry,) = ledger_of(folder)
    assert entry["data"]["data_fingerprint"] == summary["data_fingerprint"]
    again = Forked()
    assert judge(read_judge(words(folder, "--seeds", "2")), again, print) == found
    assert again.commands == ["preflight"]


def test_a_mistake_is_one_sentence_and_in_the_json(tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    line = ["scripts/judge.py", "no_such.py", "--runs", str(tmp_path / "runs"), f"--json={file}"]
    done = subprocess.run([sys.executable, *line], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: model.variant is 'no_such.py'") and done.stderr.count("\n") == 1
    found = json.loads(file.read_text())
    assert list(found) == list(KEYS) and done.stderr == f"error: {found['reason']}\n"
    assert (found["status"], found["exit_status"]) == ("refused", 2)
    assert not (tmp_path / "runs").exists()
