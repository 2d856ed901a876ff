"""The judgment of one candidate: check, train beside the baseline, evaluate, compare, and write it down."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data import keep_commits, open_data, settled, with_commits_of
from model.errors import UserError
from model.files import write_json
from training.run.folder import RunFolder, recipe_as_dict
from training.run.reader import read_json, read_summary
from training.run.search import WantedRun, find_run
from training.run_files import PreflightFile

from ..tasks import check_tasks
from .commands import Ended, Interrupted, Start
from .evaluation import evaluate_run
from .folders import held_folder
from .ledger import Ledger
from .request import JudgeRequest, Trial, describe_design

EXIT_STATUS = {
    "judged": 0,
    "refused_by_preflight": 1,
    "failed": 1,
    "refused": 2,
    "diverged": 3,
    "interrupted": 75,
}
"""How a judgment ends, and the exit status for it."""
KEYS = (
    "status", "exit_status", "reason", "verdict", "difference", "seeds", "candidate", "baseline", "recipe",
    "deepspeed_config", "changes", "ranks", "settings", "candidate_overrides", "data", "length", "preflight",
    "evaluation", "cost", "problems", "runs", "ledger",
)  # fmt: skip
"""The keys of the JSON verdict; docs/judge.md says what they hold. None where it is not known."""
IN_LEDGER = (
    "status", "reason", "candidate", "baseline", "recipe", "deepspeed_config", "changes", "settings",
    "candidate_overrides", "data", "length", "verdict", "difference", "seeds",
)  # fmt: skip


class Ending(Exception):
    """A judgment ends before a verdict: one of `EXIT_STATUS`, and why."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def judge(request: JudgeRequest, start: Start, say: Callable[[str], object]) -> dict[str, Any]:
    """The JSON verdict on a candidate, and its line in the ledger, however the judgment ends.

    Args:
        request: what to judge.
        start: runs a command; it raises `Interrupted` where this process was asked to stop.
        say: is told what happens.

    Raises UserError or OSError where the ledger cannot be read or written.
    """
    ledger = Ledger(request.runs)
    ledger.entries()  # one that cannot be read is refused before anything is trained
    content: dict[str, Any] = dict.fromkeys(KEYS) | _asked(request)
    try:
        Judgment(request, start, say, content, ledger).run()
        status, reason = "judged", content["verdict"]["sentence"]
    except Ending as ending:
        status, reason = ending.status, str(ending)
    except Interrupted:
        status, reason = "interrupted", "it was interrupted: the same command goes on from there"
    except (UserError, OSError) as error:
        status, reason = "refused", str(error)
    content |= {"status": status, "exit_status": EXIT_STATUS[status], "reason": reason}
    if status not in ("interrupted", "refused"):
        ledger.add({key: content[key] for key in IN_LEDGER})
    looks = ledger.looks()
    content["ledger"] = {"file": str(ledger.path), "entries": len(ledger.entries()), "looks": looks}
    if content["verdict"]:
        content["verdict"]["looks"] = (
            f"the ledger holds {looks} look(s), and the interval holds for all of them together"
        )
    return content


def refusal(error: object) -> dict[str, Any]:
    """The JSON where the command itself cannot be."""
    refused = {"status": "refused", "exit_status": EXIT_STATUS["refused"], "reason": str(error)}
    return dict.fromkeys(KEYS) | refused


class Judgment:
    """One judgment under way; `content` is filled with what is found out.

    Args:
        request: what to judge.
        start: runs a command.
        say: is told what happens.
        content: the JSON verdict so far.
        ledger: what was looked at before.
    """

    def __init__(
        self,
        request: JudgeRequest,
        start: Start,
        say: Callable[[str], object],
        content: dict[str, Any],
        ledger: Ledger,
    ) -> None:
        self.request, self.start, self.say, self.content = request, start, say, content
        self.ledger = ledger
        self.fingerprints: dict[str, str] = {}
        self.data = request.first("candidate").recipe.data
        self.older_data: str | None = None

    def run(self) -> None:
        """All of it. Raises Ending, UserError or OSError where there is no verdict."""
        recipe = self.request.first("candidate").recipe
        config = recipe.eval
        check_tasks(config.tasks, config.data_dir, config.include_path, config.num_fewshot)
        asked = with_commits_of(self.request.runs, recipe.data)
        corpus, validation = open_data(asked, self.say)
        self.data = settled(asked, corpus)
        keep_commits(self.request.runs, recipe.data, self.data)  # so that all runs read the same
        data_fingerprint, self.older_data = corpus.fingerprints
        self.fingerprints = {
            "data_fingerprint": data_fingerprint,
            "val_fingerprint": validation.fingerprint,
        }
        self.content["data"] |= self.fingerprints
        self.check()
        folders = [self.train(trial, n) for n, trial in enumerate(self.request.trials, start=1)]
        self.content["runs"] = [str(folder) for folder in folders]
        evaluated = [evaluate_run(folder, config, self.start, self.say) for folder in folders]
        problems = [problem for problem in evaluated if problem]
        from .verdict import compare_runs  # pandas and scipy cost seconds

        pairs = [
            (trial.seed, ours, theirs)
            for trial, ours, theirs in zip(self.request.trials[::2], folders[::2], folders[1::2], strict=True)
        ]
        found = compare_runs(pairs, self.ledger.looks(self.content))
        self.content |= found | {"problems": [*found["problems"], *problems]}

    def check(self) -> None:
        """The thorough pre-flight check. Raises Ending where it refuses the candidate."""
        trial = self.request.first("candidate")
        self.say(f"pre-flight check of {trial.recipe.variant}")
        model = recipe_as_dict(vars(trial.recipe))["model"]
        words = [
            f"--model.{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in model.items()
        ]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "preflight.json")
            ended = self.start("preflight", [*words, "--json", str(file)])
            if not file.is_file():
                raise _ending(ended, "the pre-flight check")
            report = read_json(file, PreflightFile)
        self._note_preflight(report, trial)
        self.say(f"pre-flight check: {'passed' if report['passed'] else 'refused'}")

    def _note_preflight(self, report: Mapping[str, Any], trial: Trial) -> None:
        found = {
            status: [
                {"name": check["name"], "detail": check["detail"]}
                for check in report["checks"]
                if check["status"] == status
            ]
            for status in ("fail", "warn")
        }
        checks = len(report["checks"])
        self.content["preflight"] = {"passed": report["passed"], "checks": checks} | found
        if not report["passed"]:
            first = (found["fail"] or [{"name": "check", "detail": "failed"}])[0]
            raise Ending(
                "refused_by_preflight",
                f"the pre-flight check refuses {trial.recipe.variant}: {first['name']}: {first['detail']}",
            )

    def train(self, trial: Trial, number: int) -> Path:
        """The folder of a finished run: one that is there, one that goes on, or a new one.

        Raises Ending where it does not finish.
        """
        design = describe_design(trial)["code_fingerprint"]
        fingerprints = {**self.fingerprints, "design_fingerprint": design}
        recipe = replace(trial.recipe, data=self.data)
        wanted = WantedRun(recipe, trial.deepspeed, self.request.ranks, fingerprints, self.older_data)
        name = f"{trial.recipe.variant}, seed {trial.seed} ({number} of {len(self.request.trials)})"
        with held_folder(
            self.request.runs, trial.name, lambda: find_run(self.request.runs, wanted), self.say
        ) as folder:
            summary = read_summary(folder) if RunFolder(folder, rank=0).has_begun() else {}
            if summary.get("status") in ("finished", "diverged"):
                self.say(f"{name}: {folder} is there")
            else:
                self.say(f"training {name}: {folder}")
                # All runs are evaluated together, once they are there.
                words = [*trial.words, "--eval.after_training=false", "--run_dir", str(folder)]
                ended = self.start("train", words, self.request.ranks)
                summary = read_summary(folder) if (folder / "summary.json").is_file() else {}
                self._check_training(trial, folder, ended, summary)
        if summary["status"] == "diverged":
            step = summary.get("step")
            who = f"{trial.recipe.variant} diverged with seed {trial.seed}, at step {step} ({folder})"
            if trial.role == "baseline":
                raise Ending("failed", f"there is nothing to compare with: the baseline {who}")
            raise Ending("diverged", who)
        return folder

    def _check_training(self, trial: Trial, folder: Path, ended: Ended, summary: Mapping[str, Any]) -> None:
        status = summary.get("status")
        if status in ("finished", "diverged"):
            return
        report = folder / "preflight.json"
        found = read_json(report, PreflightFile) if report.exists() else {"passed": True}
        if trial.role == "candidate" and not found["passed"]:
            self._note_preflight(found, trial)
        what = f"training {trial.recipe.variant} with seed {trial.seed} in {folder}"
        if ended.status == 2:  # its summary is of an earlier start
            raise _ending(ended, what)
        if status == "failed" and "error" in summary:
            raise Ending("failed", f"{what}: {summary['error']}")
        if status == "interrupted" and "error" not in summary and ended.status in (0, 75):
            raise Interrupted  # by another than us: it is saved
        raise _ending(ended, what)


def _ending(ended: Ended, what: str) -> Ending:
    """A command that gave no result: refused where what the user gave cannot be, failed otherwise."""
    return Ending("refused" if ended.status == 2 else "failed", f"{what}: {ended.reason()}")


def _asked(request: JudgeRequest) -> dict[str, Any]:
    """The keys of the JSON that are known before anything is done."""
    candidate, baseline = request.first("candidate"), request.first("baseline")
    settings = candidate.settings()
    return {
        "candidate": {"file": request.candidate, **describe_design(candidate)},
        "baseline": describe_design(baseline),
        "recipe": request.recipe_file,
        "deepspeed_config": request.deepspeed_file,
        "changes": dict(request.changes),
        "ranks": request.ranks,
        "settings": {"candidate": settings, "baseline": baseline.settings()},
        "candidate_overrides": candidate.overrides.facts().get("candidate_overrides"),
        "seeds": [
            {"seed": trial.seed, "candidate": None, "baseline": None, "difference": None}
            for trial in request.trials[::2]
        ],
        "data": {"source": candidate.recipe.data.source, "tokenizer": candidate.recipe.data.tokenizer},
        "length": {key: settings[key] for key in ("steps", "tokens_per_step")} | {"tokens": candidate.tokens},
        "problems": [],
        "runs": [],
    }


def write_verdict(file: str | None, content: Mapping[str, Any]) -> None:
    """The JSON verdict, whole or not at all, where a file was named."""
    if file is not None:
        write_json(Path(file), content)
