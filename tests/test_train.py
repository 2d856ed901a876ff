"""The main job as a user runs it: to the end, killed and resumed, stopped, diverging, and refused."""

import pydoc_data.topics
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import train
from model.errors import DIVERGED, INTERRUPTED
from tests.jobs import arguments, lines_of, make_job, run, run_until, steps_of, summary_of
from tests.processes import ENVIRONMENT
from training.engine.weights import load_model

STEPS = 12


@pytest.fixture(scope="module", autouse=True)
def with_tracking() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "WANDB_MODE", "offline")
        yield


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small corpus of real English, a recipe and DeepSpeed configs for it."""
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    return make_job(tmp_path_factory.mktemp("job"), texts, STEPS)


def assert_evaluation_reads_the_trained_weights(run_dir: Path) -> None:
    gpt, step = load_model(run_dir)
    saved = run_dir / "checkpoints" / f"step_{step:08d}" / "mp_rank_00_model_states.pt"
    trained = torch.load(saved, weights_only=False)["module"]
    for name, master in gpt.named_parameters():
        assert torch.equal(master.to(trained[name].dtype), trained[name]), name


@pytest.fixture(scope="module")
def uninterrupted(job: Path) -> Path:
    run_dir = job / "uninterrupted"
    result = run(arguments(job, run_dir), typed=True)
    assert result.returncode == 0, result.stderr
    return run_dir


def test_a_run_leaves_what_the_readme_says(uninterrupted: Path) -> None:
    summary = summary_of(uninterrupted)
    assert summary["status"] == "finished" and summary["step"] == STEPS
    assert summary["tokens"] == STEPS * 8 * 32
    assert summary["precision"] == "fp32" and summary["variant"] == "vanilla"
    lines = steps_of(uninterrupted)
    assert [line[1] for line in lines if line[0] == "train"] == list(range(1, STEPS + 1))
    assert [line[1] for line in lines if line[0] == "val"] == [4, 8, 12]
    assert lines[-1][3] == summary["val_loss"] < summary["floors"]["uniform"]
    names = {path.name for path in uninterrupted.iterdir()}
    files = {"recipe.yaml", "ds_config.json", "environment.json", "metrics.jsonl", "summary.json"}
    assert files | {"checkpoints", "eval", "logs", "wandb"} == names
    checkpoint = uninterrupted / summary["last_checkpoint"]
    assert {"trainer_state.json", "manifest.json"} <= {path.name for path in checkpoint.iterdir()}
    documents = pq.read_table(uninterrupted / "eval" / checkpoint.name / "validation.parquet").to_pandas()
    mean = documents["loss"].sum() / documents["tokens"].sum()
    assert documents["tokens"].sum() == summary["val_tokens"]
    assert mean == pytest.approx(summary["val_loss"], rel=1e-12)
    assert_evaluation_reads_the_trained_weights(uninterrupted)


def test_run_again_says_that_it_is_finished(job: Path, uninterrupted: Path) -> None:
    before = (uninterrupted / "metrics.jsonl").read_text()
    result = run(arguments(job, uninterrupted))
    assert result.returncode == 0
    assert "is finished: 12 steps, validation loss" in result.stderr
    assert (uninterrupted / "metrics.jsonl").read_text() == before


def test_another_recipe_is_refused_in_a_run_folder_in_use(job: Path, uninterrupted: Path) -> None:
    result = run(arguments(job, uninterrupted, "--model.variant", "rmsnorm"))
    assert result.returncode == 2
    assert "model.norm = 'layernorm', but 'rmsnorm' is asked for" in result.stderr


@pytest.mark.slow
def test_killed_twice_and_resumed_a_run_is_the_uninterrupted_bit_for_bit(
    job: Path, uninterrupted: Path
) -> None:
    run_dir = job / "killed"
    for lines in (5, 8):  # after the checkpoints at 3 and 6, at steps that they do not hold
        assert run_until(arguments(job, run_dir), lines, signal.SIGKILL) == -signal.SIGKILL
        assert summary_of(run_dir)["status"] == "running"
    result = run(arguments(job, run_dir))
    assert result.returncode == 0, result.stderr
    assert "resumed from" in result.stderr
    assert steps_of(run_dir) == steps_of(uninterrupted)
    assert summary_of(run_dir)["status"] == "finished"
    tracked = [path.name.split("-")[3] for path in (run_dir / "wandb").glob("offline-run-*")]
    assert len(tracked) == 3 and len(set(tracked)) == 1  # three starts, one W&B run


@pytest.mark.slow
def test_stopped_by_sigterm_a_run_saves_and_goes_on(job: Path, uninterrupted: Path) -> None:
    run_dir = job / "stopped"
    assert run_until(arguments(job, run_dir), 2, signal.SIGTERM) == INTERRUPTED
    summary = summary_of(run_dir)
    assert summary["status"] == "interrupted" and 0 < summary["step"] < STEPS
    assert run(arguments(job, run_dir)).returncode == 0
    assert steps_of(run_dir) == steps_of(uninterrupted)


@pytest.mark.slow
def test_killed_on_two_ranks_in_bf16_it_is_the_uninterrupted_bit_for_bit(job: Path) -> None:
    whole, killed = job / "two_ranks", job / "two_ranks_killed"
    result = run(arguments(job, whole, ds_config="bf16.json"), ranks=2)
    assert result.returncode == 0, result.stderr
    words = arguments(job, killed, ds_config="bf16.json")
    run_until(words, 5, signal.SIGKILL, ranks=2, typed=True)
    assert summary_of(killed)["status"] == "running"
    result = run(words, ranks=2, typed=True)
    assert result.returncode == 0, result.stderr
    assert steps_of(killed) == steps_of(whole)
    assert summary_of(killed)["world_size"] == 2 and summary_of(killed)["precision"] == "bf16"
    assert_evaluation_reads_the_trained_weights(killed)


@pytest.mark.slow
def test_without_their_launcher_the_ranks_save_and_the_next_start_goes_on(job: Path) -> None:
    whole, orphaned = job / "launched", job / "orphaned"
    long = ["--train.steps", "40"]
    assert run(arguments(job, whole, *long), ranks=2).returncode == 0
    words = arguments(job, orphaned, *long)
    run_until(words, 5, signal.SIGKILL, ranks=2, typed=True, whole_group=False)
    result = run(words, ranks=2)
    assert result.returncode == 0, result.stderr
    assert "resumed from" in result.stderr
    assert steps_of(orphaned) == steps_of(whole)


NAN_NORM = """
import torch

class NanNorm(torch.nn.LayerNorm):
    def __init__(self, ndim, bias):
        super().__init__(ndim, bias=bias)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        x = super().forward(x)
        # 4 forwards a step: the third step
        return x * float("nan") if {first} < self.calls <= {last} and self.training else x
"""


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_counted_and_reported(job: Path) -> None:
    (job / "nan_once.py").write_text(NAN_NORM.format(first=8, last=12))
    run_dir = job / "nan_once"
    result = run(arguments(job, run_dir, "--model.norm", f"{job / 'nan_once.py'}:NanNorm"))
    assert result.returncode == 0, result.stderr
    assert "step 3 is skipped: its gradients are not finite" in result.stderr
    assert "1 step(s) were skipped" in result.stderr
    assert summary_of(run_dir)["skipped_steps"] == 1 and summary_of(run_dir)["status"] == "finished"
    lines = lines_of(run_dir)
    assert [line["step"] for line in lines if line.get("skipped")] == [3]
    assert [line["step"] for line in lines if line["loss"] is None] == [3]


def test_a_run_of_skipped_steps_ends_as_diverged(job: Path) -> None:
    (job / "nan_on.py").write_text(NAN_NORM.format(first=8, last=10**9))
    run_dir = job / "nan_on"
    norm = f"{job / 'nan_on.py'}:NanNorm"
    result = run(arguments(job, run_dir, "--model.norm", norm, "--train.max_skipped_steps", "2"))
    assert result.returncode == DIVERGED
    assert "diverged at step 4: the gradients of the last 2 steps were not finite" in result.stderr
    summary = summary_of(run_dir)
    assert summary["status"] == "diverged" and summary["val_loss"] is None and summary["step"] == 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--model.nrom", "rmsnorm"],
            "unknown key 'model.nrom' in the command line; the nearest known key is",
        ),
        (["--ds.optimiser.params.lr", "1e-3"], "the nearest known key is 'ds.optimizer.params.lr'"),
        (["--ds.train_batch_size", "9"], "do not divide"),
        (["--model.norm", "rmsnrom"], "did you mean 'rmsnorm'?"),
        (["--model.n_layer", "two"], "model.n_layer is 'two', but it must be an integer"),
        (["--config", "recipes/smaple.yaml"], "did you mean 'recipes/sample.yaml'?"),
    ],
)
def test_what_cannot_be_run_gets_one_sentence(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert train.main(arguments(job, tmp_path / "run", *options)) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data.source", "{empty}"], "{empty}"),
        (["--data.source", "{no_text}"], "holds no documents"),
        (["--data.lanes", "4000"], "data.lanes is 4000, but"),
    ],
)
def test_data_that_cannot_be_trained_on_gets_one_sentence(
    job: Path, tmp_path: Path, options: list[str], sentence: str
) -> None:
    folders = {"empty": tmp_path / "empty", "no_text": tmp_path / "no_text"}
    folders["empty"].mkdir()
    folders["no_text"].mkdir()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folders["no_text"] / "none.parquet")
    options = [option.format(**folders) for option in options]
    result = run(arguments(job, tmp_path / "run", *options))
    assert result.returncode == 2
    *said, error = result.stderr.splitlines()
    assert error.startswith("error: ") and all(line.startswith("validation: ") for line in said)
    assert sentence.format(**folders) in error


@pytest.mark.xdist_group("memory")
@pytest.mark.slow
def test_gpt2_medium_takes_two_steps_on_two_cpu_ranks(job: Path) -> None:
    """What is large here is the state, so that few tokens will do."""
    run_dir = job / "medium"
    files = [
        "--config",
        "recipes/gpt2_medium_fineweb.yaml",
        "--deepspeed_config",
        "ds_configs/zero1_bf16.json",
    ]
    options = ["--data.source", str(job / "corpus"), "--data.subset", "null", "--data.lanes", "2",
               "--data.validation_tokens", "2000", "--train.steps", "2", "--schedule.warmup", "1",
               "--eval.after_training", "false", "--train.diagnostics", "false",
               "--train.compile", "false", "--model.block_size", "256", "--skip_preflight",
               "--ds.train_batch_size", "2", "--ds.train_micro_batch_size_per_gpu", "1"]  # fmt: skip
    result = run([*files, *options, "--run_dir", str(run_dir)], ranks=2, timeout=1500)
    assert result.returncode == 0, result.stderr
    summary = summary_of(run_dir)
    assert summary["status"] == "finished" and summary["step"] == 2 and summary["tokens"] == 2 * 2 * 256
    assert summary["parameters"] == 354_599_936 - (1024 - 256) * 1024 and summary["skipped_steps"] == 0
    losses = [loss for kind, _, _, loss in steps_of(run_dir) if kind == "train"]
    assert 10.7 < losses[0] < 11.2 and losses[1] < losses[0] + 0.5
