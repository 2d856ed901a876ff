"""A design that reads the training step through the main job: resumed, validated, loaded and exported."""

import pydoc_data.topics
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from data import open_data
from model import to_hf
from tests.jobs import arguments, lines_of, make_job, run, run_until, steps_of, summary_of
from training import read_command
from training.engine.weights import load_model
from training.validation import token_losses

STEPS = 9
# Two layers: the first is open from step 3 on, the second from step 6.
WARMUP = ["--model.variant", "residual_warmup", "--model.block_options.steps", "3"]
OPTIONS = [
    *WARMUP,
    "--train.val_every",
    "3",
    "--train.keep_checkpoints",
    "9",
    "--train.checkpoint_every",
    "1",
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    return make_job(tmp_path_factory.mktemp("job"), texts, STEPS)


@pytest.fixture(scope="module")
def uninterrupted(job: Path) -> Path:
    result = run(arguments(job, job / "uninterrupted", *OPTIONS))
    assert result.returncode == 0, result.stderr
    return job / "uninterrupted"


def val_losses(run_dir: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines_of(run_dir) if line["kind"] == "val"}


@pytest.mark.slow
def test_killed_while_its_layers_open_a_run_goes_on_bit_for_bit(job: Path, uninterrupted: Path) -> None:
    run_dir = job / "killed"
    for lines in (3, 6):
        assert run_until(arguments(job, run_dir, *OPTIONS), lines, signal.SIGKILL) == -signal.SIGKILL
        assert summary_of(run_dir)["status"] == "running"
    result = run(arguments(job, run_dir, *OPTIONS))
    assert result.returncode == 0, result.stderr
    assert "resumed from" in result.stderr
    assert steps_of(run_dir) == steps_of(uninterrupted)
    (ours, _), (theirs, _) = load_model(run_dir), load_model(uninterrupted)
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight), name


@pytest.mark.slow
def test_the_schedule_reaches_the_training(job: Path, uninterrupted: Path) -> None:
    plain = job / "open"
    result = run(arguments(job, plain, *OPTIONS, "--model.block_options.steps", "1"))
    assert result.returncode == 0, result.stderr
    ours, theirs = steps_of(uninterrupted), steps_of(plain)
    assert ours[0] == theirs[0]  # the first step is taken with closed branches either way
    assert all(left != right for left, right in zip(ours[1:], theirs[1:], strict=True))


@pytest.mark.parametrize("step", [3, 6])
def test_a_checkpoint_scores_as_it_did_in_training(job: Path, uninterrupted: Path, step: int) -> None:
    recipe, *_ = read_command(arguments(job, uninterrupted, *OPTIONS))
    _, validation = open_data(recipe.data, lambda sentence: None)
    gpt, found = load_model(uninterrupted, step)
    assert found == gpt.training_step == step

    def loss() -> float:
        return token_losses(gpt, validation, 32, 16, torch.device("cpu")).mean()

    assert loss() == pytest.approx(val_losses(uninterrupted)[step], abs=1e-6)
    gpt.set_training_step(step - 1)  # the step that led there
    assert abs(loss() - val_losses(uninterrupted)[step]) > 1e-5


def test_an_exported_checkpoint_is_the_loaded_one(uninterrupted: Path, tmp_path: Path) -> None:
    gpt, _ = load_model(uninterrupted, 4)
    folder = to_hf(gpt, tmp_path / "hf")
    idx = torch.randint(0, 50257, (1, 20))
    expected = gpt(idx)[0]
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    torch.testing.assert_close(theirs(input_ids=idx).logits, expected, atol=1e-5, rtol=1e-5)
    gpt.set_training_step(9)
    assert not torch.allclose(gpt(idx)[0], expected, atol=1e-4, rtol=1e-4)
