"""What only a GPU shows of training: a CPU's losses, a resumed run, a checkpoint's copy, marks."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.jobs import arguments, command, lines_of, make_job
from tests.processes import ENVIRONMENT, ROOT
from tests.short_lines import TEXTS
from training.checkpoints.host_copy import HostCopies
from training.timing.mark import Mark, on_device

pytestmark = pytest.mark.gpu
STEPS = 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, gpu: torch.device) -> Path:
    """A folder with runs in fp32, on the GPU `whole` and `parts`, which ended after three steps and went on;
    `gpu` and `cpu` are without dropout, whose random numbers differ between the two."""
    job = make_job(tmp_path_factory.mktemp("job"), TEXTS[:20], STEPS, "bytes")
    there = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    there = (there if gpu.type == "cuda" else ENVIRONMENT) | {"WANDB_MODE": "disabled"}
    half = ("--train.steps", str(STEPS // 2), "--schedule.steps", str(STEPS))
    without = ("--model.dropout", "0")
    for at_once in (
        [
            ("whole", there, ()),
            ("parts", there, half),
            ("gpu", there, without),
            ("cpu", ENVIRONMENT, without),
        ],
        [("parts", there, ("--schedule.steps", str(STEPS)))],
    ):
        started = [
            subprocess.Popen(
                command(arguments(job, job / name, *options)),
                cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for name, environment, options in at_once
        ]  # fmt: skip
        for process in started:
            printed, _ = process.communicate(timeout=300)
            assert process.returncode == 0, printed
    return job


def trained(run_dir: Path) -> dict[int, list[float]]:
    """Loss and gradient norm of each step, and the validation loss at its end if it was taken."""
    found: dict[int, list[float]] = {}
    for line in lines_of(run_dir):
        keys = {"train": ("loss", "grad_norm"), "val": ("loss",)}.get(line["kind"], ())
        found.setdefault(line["step"], []).extend(line[key] for key in keys)
    return found


def test_a_gpu_trains_in_fp32_as_the_cpu_does(runs: Path) -> None:
    on_gpu, on_cpu = trained(runs / "gpu"), trained(runs / "cpu")
    assert list(on_gpu) == list(on_cpu) and len(on_gpu[STEPS]) == 3
    assert on_gpu[1] == pytest.approx(on_cpu[1], rel=1e-5), "before the weights move"
    for step, values in on_gpu.items():
        assert values == pytest.approx(on_cpu[step], rel=1e-3), step


def test_a_resumed_run_goes_on_as_the_whole_one(runs: Path) -> None:
    """But for a few last digits, because a GPU adds in the order in which threads come. Other dropout or data
    changes the third."""
    whole, parts = trained(runs / "whole"), trained(runs / "parts")
    for step in range(STEPS // 2 + 1, STEPS + 1):
        assert parts[step] == pytest.approx(whole[step], rel=1e-4), step


def test_a_checkpoints_copy_is_the_state_before_the_next_step(gpu: torch.device) -> None:
    copies = HostCopies()
    for value in (1.0, 2.0):  # the second copy takes the memory of the first
        weights = torch.full((1 << 22,), value, device=gpu)
        state = {"weights": weights, "tied": weights[: 1 << 10], "step": 3}
        copied = copies.copy(state)
        copies.finish()
        weights.add_(5)
        assert copied["step"] == 3 and copied["weights"].device.type == "cpu"
        assert copied["weights"].is_pinned() == (gpu.type == "cuda")
        assert copied["weights"].eq(value).all() and copied["tied"].eq(value).all()
        assert copies.bytes == 4 << 22
        copies.give_back()


def test_a_mark_is_reached_with_what_came_before_it(gpu: torch.device) -> None:
    """What is read there is right while the stream is busy with what came later."""
    size = 4096 if gpu.type == "cuda" else 64
    numbers = on_device(torch.arange(1 << 16), gpu)
    matrix = torch.randn(size, size, device=gpu)
    begin = Mark(gpu)
    total = numbers.sum().to("cpu", non_blocking=True)
    copied = Mark(gpu)
    for _ in range(20):
        matrix = matrix @ matrix / size
    end = Mark(gpu)
    copied.wait()
    assert copied.is_reached() and total == (1 << 15) * ((1 << 16) - 1)
    end.wait()
    assert end.is_reached() and 0 <= begin.seconds_until(copied) < begin.seconds_until(end) < 60
