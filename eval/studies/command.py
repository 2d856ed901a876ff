"""The command line of scripts/study.py."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from model.errors import UserError
from training.config.command_line import CommandLine, Option

from .outcomes import StudyFolder
from .plan import Plan, make_plan
from .study import read_study

Mode = Literal["run", "plan", "status"]
STUDY = CommandLine(
    prog="scripts/study.py",
    usage="python scripts/study.py STUDY.yaml [--runs DIR] [--plan | --status] [--sequential] [--retry]",
    description="A study: designs, sizes, rates and seeds, registered before the first run, trained and "
    "judged. The same command goes on where it stopped; several at the same time, on this machine or on "
    "others that share the folder of runs, divide the runs among them. The exit status is 0 where all that "
    "could be run has been, 1 where nothing could be judged, 2 for a command that cannot be, 75 where it was "
    "interrupted.",
    sections={},
    shorthands={},
    options={
        "study": Option("the study's file; it may stand alone", "STUDY.yaml"),
        "runs": Option("where run folders, studies and ledger.jsonl are (default: runs)", "DIR"),
        "plan": Option("print runs, tokens, time and power: how many seeds show what; run nothing", None),
        "status": Option("print what was found so far; run nothing", None),
        "sequential": Option("add seeds one by one until each answer is clear (rules.sequential)", None),
        "retry": Option("try runs again that ended with an error or were refused", None),
    },
)


@dataclass(frozen=True)
class StudyRequest:
    """What scripts/study.py is asked.

    Attributes:
        plan: of the study, resolved.
        folder: of the study.
        mode: what is done with it.
        retry: whether failed runs are tried again.
    """

    plan: Plan
    folder: StudyFolder
    mode: Mode
    retry: bool


def read_command(argv: list[str]) -> StudyRequest:
    """The command line and the study, with every run resolved; nothing heavy is imported.

    Raises UserError or OSError with one sentence, and SystemExit after `--help`.
    """
    given = STUDY.read(list(with_study(argv))).options
    if "study" not in given:
        raise UserError("the study is missing: python scripts/study.py recipes/studies/sample.yaml")
    if "plan" in given and "status" in given:
        raise UserError("--plan and --status are two questions: ask one after the other")
    study = read_study(Path(given["study"]))
    if "sequential" in given:
        study = replace(study, rules=replace(study.rules, sequential=True))
    mode: Mode = "plan" if "plan" in given else "status" if "status" in given else "run"
    runs = Path(given.get("runs", "runs"))
    return StudyRequest(make_plan(study), StudyFolder(runs, study.name), mode, "retry" in given)


def with_study(argv: list[str]) -> Iterator[str]:
    """The words, with the one that belongs to no option as --study=WORD; UserError for two of them."""
    study, takes_value = None, {f"--{name}" for name, option in STUDY.options.items() if option.metavar}
    is_value = False
    for word in argv:
        if not word.startswith("-") and not is_value:
            if study is not None:
                raise UserError(f"'{study}' and '{word}' are two studies: run one after the other")
            study, word = word, f"--study={word}"
        is_value = word in takes_value
        yield word
