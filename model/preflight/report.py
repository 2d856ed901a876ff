"""What the pre-flight check says: a line for each check, and the numbers behind them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import UserError, raised_at
from ..plugin import in_words

__all__ = ["Check", "Doubtful", "Refused", "Report", "Rounding", "Status", "raised_at"]

Status = Literal["pass", "rounding", "warn", "fail"]


class Refused(Exception):
    """What a failed check found, and what to do."""


class Doubtful(Exception):
    """What a check found that a user should know, though a run may start."""


class Rounding(Exception):
    """What differs, and by the rounding of sums alone: no bit of another position's values is in it."""


@dataclass(frozen=True)
class Check:
    """One check's outcome.

    Attributes:
        name: `subject.what`, such as `causality.layers`.
        status: `rounding` is as good as `pass`.
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
    _raised: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self._with("fail")

    def run(self, name: str, check: Callable[[], str]) -> bool:
        """Add the outcome of `check`, which returns its detail or raises `Refused`, `Doubtful` or `Rounding`.

        Any other exception comes from the design's own code, and is a failed check; one that an earlier check
        has met is not described again. Returns whether the check did not fail.
        """
        status: Status = "pass"
        try:
            detail = check()
        except Rounding as rounding:
            status, detail = "rounding", str(rounding)
        except Doubtful as doubt:
            status, detail = "warn", str(doubt)
        except Refused as refusal:
            status, detail = "fail", str(refusal)
        except UserError as error:
            status, detail = "fail", str(error)
        except (Exception, SystemExit) as error:
            status, detail = "fail", f"raised {in_words(error)[:300]}{raised_at(error)}"
            met = self._raised.setdefault(re.sub(r"\d+", "", detail), name)
            if met != name:
                detail = f"raised the same {type(error).__name__} as {met}"
        self.checks.append(Check(name, status, detail))
        return status != "fail"

    def note(self, name: str, detail: str) -> None:
        """Add a warning."""
        self.checks.append(Check(name, "warn", detail))

    def table(self) -> str:
        """Status, check and detail in columns, and a last line with the verdict."""
        width = max((len(check.name) for check in self.checks), default=0)
        column = max((len(check.status) for check in self.checks), default=0)
        lines = [f"{check.status:<{column}}  {check.name:<{width}}  {check.detail}" for check in self.checks]
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
