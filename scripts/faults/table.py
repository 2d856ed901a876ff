"""A fault, what should happen then, what did, and the table of both."""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .jobs import Job, wait_until
from .runs import START_LIMIT_S, Bench, Stage, read_json, steps_done

LONG = (Stage(2, 40),)
"""The run that most faults meet in its middle: some seconds of steps."""
BAR = re.compile(r"\S+: +\d+%\|[^\n]*?\]")


@dataclass
class Seen:
    """What happened at a fault.

    Attributes:
        seconds: from the fault to the end of the command.
        exit_status: of the command: the highest of its ranks' own, or minus the signal that ended all.
        status: what summary.json says.
        text: all that was said: on the terminal, in summary.json and in failure.json.
        afterwards: what the same command came to, started again.
        problems: what else was not as it should be.
    """

    seconds: float
    exit_status: int | None
    status: str
    text: str
    afterwards: str = ""
    problems: list[str] = field(default_factory=list)


class Scene:
    """The run that one fault meets, in a folder of its own.

    Attributes:
        bench: where corpus and recipe lie.
        run_dir: the run's folder, which is new.
        bound_s: seconds that the fault's outcome may take.
    """

    def __init__(self, bench: Bench, name: str, bound_s: float) -> None:
        self.bench, self.bound_s = bench, bound_s
        self.run_dir = bench.folder / "faults" / name.replace(" ", "_").replace("&", "and")
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.run_dir.parent.mkdir(exist_ok=True)

    def start(self, *options: str, **how: Any) -> Job:
        """Start the run, or go on with it."""
        return self.bench.start(self.run_dir, *(options or self.long()), **how)

    def long(self, *options: str) -> list[str]:
        """The options of the run of LONG."""
        return [*options, "--train.steps", str(LONG[-1].steps)]

    def reached(self, job: Job, step: int) -> None:
        """Return once the run has made so many steps, or its command has ended."""
        wait_until(lambda: job.is_over() or steps_done(self.run_dir) >= step, START_LIMIT_S)

    def end(self, job: Job, since: float = 0.0, ranks: Sequence[int] = ()) -> Seen:
        """Wait for a command's end, or that of these ranks; seconds count from `since` after its start."""
        statuses = job.wait(self.bound_s + 60, ranks)
        seconds = job.seconds() - since
        if ranks:
            statuses = [statuses[rank] for rank in ranks]
        own = [status for status in statuses if status is not None and status >= 0]
        known = [status for status in statuses if status is not None]
        status = None if len(known) < len(statuses) else max(own, default=min(known, default=None))
        return Seen(seconds, status, self.status(), self.said(job))

    def status(self) -> str:
        return str(read_json(self.run_dir / "summary.json").get("status", ""))

    def said(self, job: Job) -> str:
        """All that a command, summary.json and failure.json say."""
        summary, failure = (read_json(self.run_dir / name) for name in ("summary.json", "failure.json"))
        facts = {key: summary.get(key) for key in ("error", "reason", "divergence", "spikes")}
        text = "\n".join(
            [
                BAR.sub("\n", job.printed().replace("\r", "\n")),
                str(failure.get("sentence", "")),
                f"summary: {facts}",
            ]
        )
        return text.replace(str(self.run_dir), "RUN")

    def goes_on(self, *options: str, reference: Path | None = None, **how: Any) -> str:
        """Start the command again, to its end: "exact", or what was not."""
        job = self.start(*options, **how)
        statuses = job.wait(START_LIMIT_S)
        if set(statuses) != {0}:
            return f"ended with {statuses}: {job.printed()[-600:]}"
        return self.exact(reference)

    def exact(self, reference: Path | None = None) -> str:
        """Whether the run has come to the end of the one that nobody disturbed: "exact", or what differs."""
        found = self.bench.differences(self.run_dir, reference or self.bench.reference(LONG))
        return "exact" if not found else f"{len(found)} differences: {found[0]}"


@dataclass(frozen=True)
class Fault:
    """One row of the table: what is done to a run, and what should come of it.

    Attributes:
        name: as the table and `--only` have it.
        bound_s: seconds that the outcome may take.
        exit_statuses: those that the command may end with.
        status: in summary.json; None where it is not looked at, as on a full disk.
        says: a pattern that something said must match.
        afterwards: what the same command then comes to; "" where it is not started again.
        play: does it.
    """

    name: str
    bound_s: float
    exit_statuses: tuple[int, ...]
    status: str | None
    says: str
    afterwards: str
    play: Callable[[Scene], Seen]

    def problems(self, seen: Seen) -> list[str]:
        """In what an outcome is not as expected."""
        found = list(seen.problems)
        if seen.exit_status not in self.exit_statuses:
            found.append(f"exit status {seen.exit_status} instead of {self.exit_statuses}")
        if self.status is not None and seen.status != self.status:
            found.append(f"status {seen.status!r} instead of {self.status!r}")
        if not re.search(self.says, seen.text):
            found.append(f"nothing said matches {self.says!r}")
        if seen.seconds > self.bound_s:
            found.append(f"{seen.seconds:.1f} s instead of at most {self.bound_s:g}")
        if seen.afterwards != self.afterwards:
            found.append(f"afterwards: {seen.afterwards or 'nothing'} instead of {self.afterwards!r}")
        return found

    def row(self, seen: Seen) -> dict[str, Any]:
        """What is kept and printed of an outcome."""
        lines = [line.strip() for line in seen.text.splitlines() if re.search(self.says, line)]
        problems = self.problems(seen)
        kept = {key: value for key, value in asdict(seen).items() if key != "text" or problems}
        return kept | {
            "name": self.name, "bound_s": self.bound_s, "said": lines[0] if lines else "",
            "problems": problems,
        }  # fmt: skip


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """The outcomes as a table of Markdown, and below it what was not as expected."""
    print("| fault | bound, s | took, s | exit status | status | what is said | the same command then |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        said = row["said"].replace("|", "\\|")
        cells = [
            row["name"], f"{row['bound_s']:g}", f"{row['seconds']:.1f}", row["exit_status"],
            row["status"] or "-", said if len(said) <= 160 else f"{said[:157]}...",
            row["afterwards"].split(":")[0] or "-",
        ]  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |")
    for row in rows:
        for problem in row["problems"]:
            print(f"not as expected: {row['name']}: {problem}")
