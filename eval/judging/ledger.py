"""The ledger of what was judged, a line each, negatives and refusals included; it counts looks.

A look is one candidate's code beside one baseline on the same data at the same length. The same thing judged
again, with more seeds or other rates, is the same look.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from filelock import FileLock

from model.errors import UserError
from model.files import write_text
from model.shapes import misshapen
from training.run.folder import as_json

FILE = "ledger.jsonl"
SEEN = ("judged", "diverged")
"""The outcomes that show how a candidate trains. What was refused or failed was not looked at."""


class Study(TypedDict):
    """Which one a line is of."""

    name: str


class Line(TypedDict):
    """What any line may hold, and does not have to."""

    study: NotRequired[Study | None]


class Code(TypedDict):
    """Of a design."""

    design_identity: str


class Data(TypedDict):
    """What was trained and scored on."""

    data_fingerprint: str | None
    val_fingerprint: str | None


class Length(TypedDict):
    """Of a run."""

    tokens: int


class Look(Line):
    """A line that says how a candidate trains."""

    candidate: Code
    baseline: Code
    data: Data
    length: Length


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
        """The lines, in order. Raises UserError at one that is none of a ledger."""
        if not self.path.exists():
            return []
        entries = []
        for number, line in enumerate(self.path.read_bytes().splitlines(), start=1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            problem = " is not a JSON object"
            if isinstance(entry, dict):
                found = misshapen(entry, Look if _is_seen(entry) else Line)
                problem = f": {found}" if found else ""
            if problem:
                raise UserError(f"{self.path} line {number}{problem}: correct it or move the file away")
            entries.append(entry)
        return entries

    def looks(self, *others: Mapping[str, Any]) -> int:
        """How many looks the ledger holds, or would hold with others in it."""
        seen = filter(_is_seen, self.entries())
        return len({look_of(entry) for entry in (*seen, *others)})


def _is_seen(entry: Mapping[str, Any]) -> bool:
    return entry.get("status") in SEEN


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
