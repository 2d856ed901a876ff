"""The torture in a shorter form: some kills, and some faults of each kind that a start or two can meet."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.faults.runs import differences
from scripts.faults.table import Fault, Seen
from tests.jobs import TIMEOUT
from tests.processes import ROOT

KILLS = ("--kills", "3", "--seed", "1")
FAULTS = ("rank killed", "SIGTERM in a step", "checkpoint bit-flipped")


def torture(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/torture.py", "--folder", str(folder), *words],
        cwd=ROOT, capture_output=True, text=True, timeout=2 * TIMEOUT,
    )  # fmt: skip


@pytest.mark.slow
def test_runs_that_are_killed_differ_in_nothing_and_faults_end_as_expected(tmp_path: Path) -> None:
    done = torture(tmp_path, *KILLS, "--only", ",".join(["kills", *FAULTS]))
    assert done.returncode == 0, done.stdout + done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0][2:] for line in table] == ["fault", *FAULTS]
    assert "0 differences after 3 kills" in done.stdout
    assert sum("torture: kill " in line for line in done.stderr.splitlines()) == 3

    again = torture(tmp_path, *KILLS, "--only", ",".join(["kills", *FAULTS]))
    assert again.returncode == 0 and again.stdout == done.stdout and "kill " not in again.stderr

    whole = tmp_path / "undisturbed" / "18on2"
    changed = tmp_path / "changed"
    shutil.copytree(whole, changed)
    assert differences(str(changed), str(whole)) == []
    metrics = changed / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"tokens": 256', '"tokens": 257', 1))
    assert len(differences(str(changed), str(whole))) == 1
    moved = tmp_path / "undisturbed" / "6on2_12on1_18on2"  # sums over one rank are rounded in another order
    names = [found for found in differences(str(moved), str(whole)) if "differs in" in found]
    assert "transformer.wte.weight" in " ".join(names)


@pytest.mark.parametrize(
    ("seen", "named"),
    [
        (Seen(3, 75, "interrupted", "SIGTERM was received", "exact"), None),
        (Seen(6, 75, "interrupted", "SIGTERM was received", "exact"), "6.0 s instead of at most 5"),
        (Seen(3, 0, "interrupted", "SIGTERM was received", "exact"), "exit status 0 instead of (75,)"),
        (Seen(3, None, "interrupted", "SIGTERM was received", "exact"), "exit status None instead of (75,)"),
        (Seen(3, 75, "running", "SIGTERM was received", "exact"), "status 'running'"),
        (Seen(3, 75, "interrupted", "stopped", "exact"), "nothing said matches 'SIGTERM'"),
        (Seen(3, 75, "interrupted", "SIGTERM was received", "1 differences: x"), "afterwards: 1 differences"),
        (Seen(3, 75, "interrupted", "SIGTERM was received", "exact", ["a leftover"]), "a leftover"),
    ],
)
def test_an_outcome_that_is_not_as_expected_is_named(seen: Seen, named: str | None) -> None:
    fault = Fault("SIGTERM", 5, (75,), "interrupted", "SIGTERM", "exact", lambda scene: seen)
    problems = fault.problems(seen)
    assert len(problems) == (named is not None)
    assert named is None or named in problems[0]
    assert fault.row(seen)["problems"] == problems


def test_a_fault_that_there_is_not_is_refused(tmp_path: Path) -> None:
    refused = torture(tmp_path / "none", "--only", "kills,rank kiled")
    assert refused.returncode == 2 and "did you mean 'rank killed'?" in refused.stderr
    assert not (tmp_path / "none").exists()
