"""Keys and signed URLs in failures, tracebacks, reports, evaluations, studies and judgments: nowhere."""

import io
import json
import os
import pydoc_data.topics
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.judging.commands import Command, Ended
from tests import jobs
from tests.data.servers import Server, serving
from tests.eval.judged import MadeUp, make_judged
from tests.eval.judged import words as judge_words
from tests.eval.studied import Trainer, gain, make_files, write_study
from tests.eval.tiny_runs import write_sets
from tests.jobs import arguments, make_job
from tests.test_train_secrets import PASSWORD, SIGNATURE, found_in

KEYS = {"HF_TOKEN": "hf_markerOfHuggingFace", "DB_PASSWORD": 'marker"of\\a größeres/pass word'}
MARKERS = [*KEYS.values(), json.dumps(KEYS["DB_PASSWORD"])[1:-1], SIGNATURE, PASSWORD]
LEAK = """
import os

def leak():
    return f"{os.environ['HF_TOKEN']} {os.environ['DB_PASSWORD']} https://u:PASSWORD@h/a.parquet?s=SIGNATURE"
""".replace("PASSWORD@", f"{PASSWORD}@").replace("SIGNATURE", SIGNATURE)
NORM = f"""{LEAK}
import torch

class Leaking(torch.nn.LayerNorm):
    def __init__(self, ndim, bias):
        super().__init__(ndim, bias=bias)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 12:
            print(leak())
            raise RuntimeError(f"it failed: {{leak()}}")
        return super().forward(x)
"""


def leak() -> str:
    namespace: dict[str, Callable[[], str]] = {}
    exec(LEAK, namespace)
    return namespace["leak"]()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        file = io.BytesIO()
        pq.write_table(pa.table({"text": sorted(pydoc_data.topics.topics.values())}), file, row_group_size=4)
        server.files["/rows.parquet"] = file.getvalue()
        yield server


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ENVIRONMENT", jobs.ENVIRONMENT | KEYS)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def signed(server: Server, signature: str = SIGNATURE) -> str:
    server.signature = f"sig={signature}"
    address = server.url.removeprefix("http://")
    return f"http://user:{PASSWORD}@{address}/rows.parquet?sig={signature}"


def start(words: list[str]) -> int:
    """A command as it is typed: the first word is its file or module."""
    command, *sys.argv[1:] = words
    run = runpy.run_path if command.endswith(".py") else runpy.run_module
    try:
        run(command, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def said(*words: str | Path, status: int = 0, main: Callable[[list[str]], int] = start) -> str:
    """What a command prints, which has no marker in it."""
    done = jobs.run([*map(str, words)], main=main)
    text = done.stdout + done.stderr
    assert done.returncode == status, text
    assert not [marker for marker in MARKERS if marker in text], text
    return text


@pytest.mark.slow
def test_a_run_that_dies_and_what_reads_it_say_and_write_no_marker(server: Server, tmp_path: Path) -> None:
    job, run, out = tmp_path / "job", tmp_path / "written" / "run", tmp_path / "written"
    job.mkdir()
    make_job(job, ["a text"], steps=8, tokenizer="bytes")
    (job / "leaking.py").write_text(NORM)
    words = arguments(job, run, "--data.source", signed(server), "--train.checkpoint_every", "1")
    words += ["--eval.data_dir", str(write_sets(tmp_path / "sets")), "--eval.limit", "2"]
    words += ["--model.norm", f"{job / 'leaking.py'}:Leaking"]
    failed = said("train.py", *words, status=1)
    assert "RuntimeError: it failed: *** *** https://***@h/a.parquet (traceback in " in failed
    failure = json.loads((run / "failure.json").read_text())
    assert failure["sentence"] == "RuntimeError: it failed: *** *** https://***@h/a.parquet"
    assert "in forward" in failure["traceback"] and failure["traceback"].count("***") >= 3
    assert (
        "Traceback" in (log := (run / "logs" / "rank0.log").read_text()) and log.count("it failed: ***") >= 1
    )
    assert sorted((run / "checkpoints").glob("step_*/trainer_state.json"))
    assert "it failed: *** ***" in said("training.run", run, status=1)
    assert "***" in said("training.run", run, "--json", status=1)
    said("eval.report", run, "--out", out / "page.html")
    said("eval.scorecard", run)
    said("eval", run, "--tasks", "piqa")
    assert json.loads(next(run.glob("eval/*/results.json")).read_text())["results"]["piqa"]
    said("eval.export", run, "--out", out / "exported")
    explained = said("train.py", *words, "--explain")
    assert "http://***@127.0.0.1" in explained
    # designs are kept as they are
    kept = {str(file) for file in (*run.glob("designs/*"), *(out / "exported").glob("design_*.py"))}
    assert [one for one in found_in(out, MARKERS) if one[0] not in kept] == []


class Failing:
    """Stands for the commands of a judgment or a study: one fails, with an error that tells all."""

    def __init__(self, of: MadeUp | Trainer, fails: str) -> None:
        self.of, self.fails = of, fails

    def __call__(self, command: Command, words: Sequence[str], ranks: int = 1) -> Ended:
        if self.fails == "itself":
            raise RuntimeError(leak())
        if command == self.fails and (command != "train" or "--model.variant=rmsnorm" in words):
            return Ended(1, f"error: {leak()}\n")
        return self.of(command, words, ranks)


def judge(words: list[str]) -> int:
    return made_up(words, MadeUp())


def study(words: list[str]) -> int:
    return made_up(words, Trainer(gain))


def made_up(words: list[str], of: MadeUp | Trainer) -> int:
    import eval.judging.commands as commands

    fails, *words = words
    commands.Commands = lambda: Failing(of, fails)  # type: ignore[assignment, misc]
    return start(words)


def test_a_study_says_and_writes_no_marker(server: Server, tmp_path: Path) -> None:
    folder = make_files(tmp_path)
    runs = folder / "runs"

    def words(signature: str = SIGNATURE) -> list[str]:
        source = {"data.source": signed(server, signature)}
        return [
            "scripts/study.py",
            str(write_study(folder, seeds=[1, 2], rules={"tries": 1}, overrides=source)),
            "--runs",
            str(runs),
        ]

    assert "Traceback" in said("itself", *words(), status=1, main=study)
    assert "*** *** https://***@h/a.parquet" in said("train", *words(), main=study)
    cells = [json.loads(file.read_text()) for file in runs.glob("studies/study/cells/*.json")]
    assert any("*** *** https://***@h/a.parquet" in cell["reason"] for cell in cells)
    # under a new signature it is the same study, of the same runs
    again = said("nothing", *words(f"{SIGNATURE}2"), "--retry", main=study)
    assert "departure" not in again and "pre-registered" in again and "edited" not in again
    said("nothing", *words(), "--status", main=study)
    said("nothing", *words(), "--plan", main=study)
    said("eval.report", runs / "studies" / "study", "--out", runs / "page.html")
    assert len(list(runs.glob("*/summary.json"))) == 4
    assert found_in(runs, MARKERS) == []


def test_a_judgment_says_and_writes_no_marker(server: Server, tmp_path: Path) -> None:
    folder = make_judged(tmp_path)
    runs, verdict = folder / "runs", folder / "runs" / "verdict.json"

    def words(signature: str = SIGNATURE) -> list[str]:
        more = ["--seeds", "1", "--json", str(verdict), "--data.source", signed(server, signature)]
        return ["scripts/judge.py", *judge_words(folder, *more)]

    assert "Traceback" in said("itself", *words(), status=1, main=judge)
    said("preflight", *words(), status=1, main=judge)
    assert "*** *** https://***@h/a.parquet" in json.loads(verdict.read_text())["reason"]
    refused = said(
        "nothing", *words(), "--data.text_column", f"{os.environ['HF_TOKEN']}", status=2, main=judge
    )
    assert "***" in refused
    said("nothing", *words(), main=judge)
    said("nothing", *words(f"{SIGNATURE}2"), main=judge)
    judged = [line for line in (runs / "ledger.jsonl").read_text().splitlines() if '"judged"' in line]
    assert len(judged) == 1
    assert found_in(runs, MARKERS) == []
