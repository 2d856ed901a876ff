"""Several runs and steps in one command: which are scored, and what becomes of the others."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eval.__main__ import main, parse
from eval.running.checkpoints import choose_steps
from eval.running.evaluation import evaluate_model, load
from eval.running.job import Job, check
from eval.running.sequence import evaluate_each
from model.errors import UserError
from tests.jobs import run

from .tiny_runs import TASKS, Quiet, eval_main, make_run, results_of, write_sets


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one", {1: 3.0, 2: 2.0, 4: None, 8: 2.5}, sets)


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "one")


def jobs_of(*words: str | Path) -> list[Job]:
    return check(parse([str(word) for word in words]))


def unlike(checkpoint: Path) -> None:
    """Give its weights another shape than the recipe says, with the manifest that belongs to them."""
    save_file({"unknown": torch.zeros(3)}, checkpoint / "model.safetensors")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    content = (checkpoint / "model.safetensors").read_bytes()
    manifest["files"]["model.safetensors"] = {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_that_cannot_be_scored_does_not_keep_others_from_it(run_dir: Path, sets: Path) -> None:
    broken, other = (make_run(run_dir.parent / name, {1: None}, sets) for name in ("broken", "other"))
    unlike(broken / "checkpoints" / "step_00000001")
    done = run([str(run_dir), str(broken), str(other)], main=eval_main)
    assert done.returncode == 2
    assert f"error: step 1 of {broken} cannot be scored: " in done.stderr
    assert done.stderr.endswith(f"2 of 3 were scored, but not step 1 of {broken}\n")
    assert "Traceback" in (broken / "logs" / "eval.log").read_text()
    assert "Traceback" not in (other / "logs" / "eval.log").read_text()
    scored = [results_of(one, step) for one, step in ((run_dir, 8), (broken, 1), (other, 1))]
    assert [set(results) for results in scored] == [set(TASKS), set(), set(TASKS)]
    alone = Quiet()
    shutil.rmtree(other / "eval")
    evaluate_model(*jobs_of(other), alone)
    assert results_of(other, 1) == scored[2]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{run}", "{run}/none"], "there is no run folder {run}/none"),
        (
            ["{run}", "{run}", "--step", "7"],
            "{run} has no complete checkpoint of step 7; the steps there are",
        ),
        (["{run}", "--step", "first"], "--step is 'first', but it must be all, best, last or a number"),
        (["{run}", "--step", "-1"], "--step is '-1', but it must be all, best, last or a number"),
        (["{run}", "{run}/checkpoints", "--out", "x"], "--out x is a folder for one model, and 2 are given"),
        (["{run}", "--num_fewshot", "5", "--tasks", "piqa"], "eval.num_fewshot is 5, but {sets}/piqa/valid"),
    ],
)
def test_a_wrong_command_is_refused_before_any_run_is_scored(
    run_dir: Path, sets: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main([word.format(run=run_dir) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + sentence.format(run=run_dir, sets=sets)) and error.count("\n") == 1
    assert not (run_dir / "eval").exists() and not (run_dir / "logs").exists()


def test_words_stand_for_steps(run_dir: Path) -> None:
    assert choose_steps(run_dir, "all") == [1, 2, 4, 8]
    assert choose_steps(run_dir, "last") == choose_steps(run_dir, 8) == [8]
    assert choose_steps(run_dir, "best") == [2]
    shutil.rmtree(run_dir / "checkpoints" / "step_00000002")
    assert choose_steps(run_dir, "best") == [8]
    for step in (1, 8):
        (run_dir / "checkpoints" / f"step_{step:08d}" / "manifest.json").unlink()
    assert choose_steps(run_dir, "all") == [4]
    with pytest.raises(UserError, match=r"no checkpoint of .*one was validated at its step.* there are 4"):
        choose_steps(run_dir, "best")


def test_all_steps_of_a_run_named_twice_are_jobs_once(run_dir: Path) -> None:
    assert [job.step for job in jobs_of(run_dir, run_dir, "--step", "all")] == [1, 2, 4, 8]


def test_checkpoints_that_are_removed_meanwhile_are_passed_over(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, console = jobs_of(run_dir, "--step", "all", "--tasks", "piqa"), Quiet()

    def remove(step: int) -> None:
        shutil.rmtree(run_dir / "checkpoints" / f"step_{step:08d}")

    def as_training_goes_on() -> Iterator[Job]:
        for job in jobs:
            if job.step == 2:
                remove(2)
            yield job

    def removed_while_it_is_read(job: Job) -> object:
        if job.step == 4:
            remove(4)
        return load(job)

    monkeypatch.setattr("eval.running.evaluation.load", removed_while_it_is_read)
    assert evaluate_each(as_training_goes_on(), console) == 0
    assert [step for step in (1, 2, 4, 8) if results_of(run_dir, step)] == [1, 8]
    gone = [line for line in console.lines if "removed" in line]
    assert gone == [f"step {n} of {run_dir} is left out: its checkpoint was removed" for n in (2, 4)]


def test_ctrl_c_ends_with_a_sentence(run_dir: Path) -> None:
    done = run([str(run_dir)], main=interrupted_main)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].startswith("stopped: what is scored is kept, and the same command")
    assert results_of(run_dir, 8).keys() == {"piqa"}


def interrupted_main(words: list[str]) -> int:
    """`python -m eval`, with Ctrl-C in its second task."""
    from eval import jobs

    run_tasks = jobs.run_tasks

    def run_or_stop(gpt, tokenizer, tasks, **options):
        if "wikitext" in tasks:
            raise KeyboardInterrupt
        return run_tasks(gpt, tokenizer, tasks, **options)

    jobs.run_tasks = run_or_stop
    return eval_main(words)
