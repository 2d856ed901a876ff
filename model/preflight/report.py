"""What the pre-flight check says: a line for each check, and the numbers behind them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ..plugin import in_words

Status = Literal["pass", "warn", "fail"]
_PREFLIGHT = Path(__file__).parent
_MODEL = _PREFLIGHT.parent
_TORCH = Path(str(getattr(find_spec("torch"), "origin", ""))).parent


class Refused(Exception):
    """What a failed check found, and what to do."""


class Doubtful(Exception):
    """What a check found that a user should know, though a run may start."""


@dataclass(frozen=True)
class Check:
    """One check's outcome.

    Attributes:
        name: `subject.what`, such as `causality.layers`.
        detail: what was found; of a failure also where, how large, and what to do.
    """

    name: str
    status: Status
    detail: str


@dataclass
class Report:
    """The outcome of every check, and what was measured.

    Attributes:
        design: the name that the design's results carry.
        numbers: measurements by name; lengths in tokens, losses in nats per token, times in seconds.
    """

    design: str
    checks: list[Check] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self._with("fail")

    def run(self, name: str, check: Callable[[], str]) -> bool:
        """Add the outcome of `check`, which returns its detail or raises `Refused` or `Doubtful`.

        Any other exception comes from the design's own code, and is a failed check. Returns whether the check
        did not fail.
        """
        status: Status = "pass"
        try:
            detail = check()
        except Doubtful as doubt:
            status, detail = "warn", str(doubt)
        except Refused as refusal:
            status, detail = "fail", str(refusal)
        except (Exception, SystemExit) as error:
            status, detail = "fail", f"raised {in_words(error)[:300]}{raised_at(error)}"
        self.checks.append(Check(name, status, detail))
        return status != "fail"

    def note(self, name: str, detail: str) -> None:
        """Add a warning."""
        self.checks.append(Check(name, "warn", detail))

    def table(self) -> str:
        """Status, check and detail in columns, and a last line with the verdict."""
        width = max((len(check.name) for check in self.checks), default=0)
        lines = [f"{check.status:<4}  {check.name:<{width}}  {check.detail}" for check in self.checks]
        return "\n".join([*lines, self.verdict()])

    def verdict(self) -> str:
        """The last line: `passed with N warnings`, or `refused: N of M checks failed`."""
        failed, warnings = self._with("fail"), self._with("warn")
        if failed:
            return f"refused: {len(failed)} of {len(self.checks)} checks failed"
        return f"passed with {len(warnings)} warning{'' if len(warnings) == 1 else 's'}"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON's types."""
        return {
            "design": self.design,
            "passed": self.passed,
            "checks": [vars(check) for check in self.checks],
            "numbers": self.numbers,
        }

    def _with(self, status: Status) -> list[Check]:
        return [check for check in self.checks if check.status == status]


def raised_at(error: BaseException) -> str:
    """Where in the design's code an exception arose: ` (candidate.py line 12)`."""
    if error.__cause__ is not None and (found := raised_at(error.__cause__)):
        return found
    ours = None
    theirs = None
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.suffix == ".py" and not path.is_relative_to(_TORCH) and not path.is_relative_to(_PREFLIGHT):
            if path.is_relative_to(_MODEL):
                ours = (path, trace.tb_lineno)
            elif "importlib" not in path.parts:
                theirs = (path, trace.tb_lineno)
        trace = trace.tb_next
    where = theirs or ours
    return f" ({where[0].name} line {where[1]})" if where else ""
