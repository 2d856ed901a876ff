"""The ledger of what was judged, a line each, negatives and refusals included; it counts looks.

A look is one candidate's code beside one baseline on the same data at the same length. The same thing judged
again, with more seeds or other rates, is the same look.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from model.errors import UserError
from model.files import write_text
from training.run.folder import as_json

FILE = "ledger.jsonl"
SEEN = ("judged", "diverged")
"""The outcomes that show how a candidate trains. What was refused or failed was not looked at."""


class Ledger:
    """`ledger.jsonl` of a folder of runs. Lines are added, and never changed.

    Attributes:
        path: of the file.
    """

    def __init__(self, runs: Path) -> None:
        self.path = runs / FILE
        self._lock = FileLock(runs / f".{FILE}.lock")

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add a line, with the time; one that is there already, but for the time, is not added again.

        A crash at any moment leaves the file with the whole line or without it. Raises UserError as
        `entries` does.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        plain = as_json(entry)  # as it will stand there
        with self._lock:
            before = self.entries()
            if any({**there, "time": None} == {**plain, "time": None} for there in before):
                return
            line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **plain})
            text = self.path.read_text() if before else ""
            write_text(self.path, f"{text}{line}\n")

    def entries(self) -> list[dict[str, Any]]:
        """The lines, in order. Raises UserError at one that is no JSON object."""
        entries = []
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                entry = None
            if not isinstance(entry, dict):
                raise UserError(
                    f"{self.path} line {number} is not a JSON object: correct it or move the file away"
                )
            entries.append(entry)
        return entries

    def looks(self, *others: Mapping[str, Any]) -> int:
        """How many looks the ledger holds, or would hold with others in it."""
        seen = [entry for entry in self.entries() if entry.get("status") in SEEN]
        return len({look_of(entry) for entry in (*seen, *others)})


def look_of(entry: Mapping[str, Any]) -> str:
    """What an entry looked at: code, baseline, data, length."""
    of = (
        entry["candidate"]["design_identity"],
        entry["baseline"]["design_identity"],
        entry["data"]["data_fingerprint"],
        entry["data"]["val_fingerprint"],
        entry["length"]["tokens"],
    )
    return json.dumps(of)
