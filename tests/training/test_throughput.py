"""What a run says of its speed, on a clock that the test turns."""

import time
from typing import Any

import pytest
import torch

from tests.clock import Clock
from tests.processes import run_forked
from training.timing import throughput as module
from training.timing.throughput import Throughput, peak_memory


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def spend(throughput: Throughput, clock: Clock, **seconds: float) -> None:
    for name, spent in seconds.items():
        with throughput.phase(name):  # type: ignore[arg-type]
            clock.now += spent


def test_phases_steps_and_shares_add_up(clock: Clock) -> None:
    throughput = Throughput(flops_per_token=10, device=torch.device("cpu"), ranks=2)
    lines = []
    for seconds in (9.0, 1.0, 1.0, 2.0):  # the first one compiles
        for _ in range(2):  # micro-batches
            spend(throughput, clock, forward=seconds / 8, backward=seconds / 4)
        spend(throughput, clock, optimizer=seconds / 8)
        clock.now += seconds / 8
        lines.append(throughput.step(tokens=600, seconds=seconds))
    spend(throughput, clock, validation=5.0)
    clock.now += 2.0
    assert lines[1] == {
        "tokens_per_s": 600.0, "step_s": 1.0, "forward_s": 0.25, "backward_s": 0.5, "optimizer_s": 0.125,
    }  # fmt: skip
    summary = throughput.summary()
    assert summary["tokens_per_s"] == 450.0  # 1,800 tokens in the 4 s after the first step
    assert summary["step_s"] == {"p50": 1.0, "p90": 1.8, "p99": 1.98}
    assert summary["time_share"] == {
        "forward": round(3.25 / 20, 4), "backward": round(6.5 / 20, 4), "optimizer": round(1.625 / 20, 4),
        "validation": 0.25, "other": round(3.625 / 20, 4),
    }  # fmt: skip
    assert "mfu" not in summary  # a CPU's peak is not known
    words = throughput.sentence()
    assert "450 tokens per second; a step took 1 s (p90 1.8, p99 1.98)" in words and "validation 25%" in words


def test_mfu_divides_by_the_peak_of_all_ranks(clock: Clock) -> None:
    throughput = Throughput(flops_per_token=1000, device=torch.device("cpu"), ranks=2)
    throughput._peak = 2 * 1e6
    assert throughput.step(tokens=500, seconds=0.5)["mfu"] == pytest.approx(0.5)
    assert throughput.summary()["mfu"] == pytest.approx(0.5) and "MFU 50.0%" in throughput.sentence()


def test_on_a_gpu_a_phase_counts_once_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        """In a stream that is told of 7 ms of work before each event, and is always one event behind."""

        told = 0.0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            Event.told += 7.0
            self.at = Event.told

        def query(self) -> bool:
            return self.at < Event.told

        def synchronize(self) -> None:
            Event.told += 1.0

        def elapsed_time(self, end: Any) -> float:
            assert end.query(), "torch raises"
            return end.at - self.at  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(module, "peak_memory", lambda cuda: 2**30)
    throughput = Throughput(flops_per_token=10**9, device=torch.device("cuda", 0), ranks=4)
    lines = []
    for _ in range(2):
        for name in ("forward", "optimizer"):
            with throughput.phase(name):  # type: ignore[arg-type]
                pass
        lines.append(throughput.step(tokens=989_000, seconds=1.0))
    assert lines[0]["forward_s"] == 0.007 and lines[0]["mfu"] == pytest.approx(0.25)
    assert "optimizer_s" not in lines[0] and lines[1]["optimizer_s"] == 0.007
    throughput.summary()
    assert throughput._seconds == {"forward": 0.014, "optimizer": 0.014}  # the last one is waited for


def see_what_was_freed() -> None:
    before = peak_memory(cuda=False)
    big = torch.ones(before // 4 + 64 * 2**20)  # fp32: more than all there was
    del big
    assert peak_memory(cuda=False) >= before + 32 * 2**20


def test_peak_memory_sees_what_was_freed_again() -> None:
    run_forked(see_what_was_freed)  # this process may be large by now
