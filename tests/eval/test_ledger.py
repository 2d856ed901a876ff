"""The ledger: whole lines only, whoever writes at once, and looks counted once each."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.judging.ledger import Ledger
from model.errors import UserError
from tests.processes import ENVIRONMENT, ROOT


def entry(code: str = "a", status: str = "judged", **changes: Any) -> dict[str, Any]:
    return {
        "status": status,
        "candidate": {"design_identity": code},
        "baseline": {"design_identity": changes.pop("baseline", "v")},
        "data": {"data_fingerprint": changes.pop("data", "d"), "val_fingerprint": "v"},
        "length": {"tokens": changes.pop("tokens", 100)},
        **changes,
    }


def test_a_look_is_code_baseline_data_and_length(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs")
    assert ledger.looks() == 0 and ledger.entries() == []
    ledger.add(entry())
    ledger.add(entry(seeds=[1, 2, 3], settings={"learning_rate": 1}))
    assert ledger.looks() == ledger.looks(entry(seeds=[4])) == 1 and ledger.looks(entry("z")) == 2
    for n, change in enumerate([{"code": "b"}, {"baseline": "w"}, {"data": "e"}, {"tokens": 200}], start=2):
        ledger.add(entry(**change))
        assert ledger.looks() == n
    ledger.add(entry(code="c", status="refused_by_preflight"))
    ledger.add(entry(code="d", status="failed"))
    assert ledger.looks() == 5
    ledger.add(entry(code="e", status="diverged"))
    assert (ledger.looks(), len(ledger.entries())) == (6, 9)


def test_a_line_is_added_with_its_time_and_never_twice(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(entry())
    first = ledger.path.read_text()
    ledger.add(entry())
    assert ledger.path.read_text() == first and json.loads(first)["time"].endswith("Z")
    ledger.add(entry("b"))
    assert ledger.path.read_text().startswith(first)


WRITER = """
import sys
from pathlib import Path
from eval.judging.ledger import Ledger
from tests.eval.test_ledger import entry
for n in range(25):
    Ledger(Path(sys.argv[1])).add(entry(f"{sys.argv[2]}-{n}", note="x" * 3000))
"""


def test_processes_that_write_at_once_lose_no_line(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, str(number)], cwd=ROOT, env=ENVIRONMENT)
        for number in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    codes = {line["candidate"]["design_identity"] for line in Ledger(tmp_path).entries()}
    assert codes == {f"{process}-{n}" for process in range(3) for n in range(25)}


def test_a_crash_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(entry())
    before = ledger.path.read_text()

    def fail(*arguments: Any) -> None:
        raise OSError("disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk is full"):
            ledger.add(entry("b"))
    assert ledger.path.read_text() == before
    ledger.add(entry("b"))
    assert ledger.looks() == 2


@pytest.mark.parametrize("line", ["[1]", '{"half', "nothing"])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(entry())
    with ledger.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"ledger\.jsonl line 2 is not a JSON object"):
        ledger.add(entry("b"))
