"""--profile: the trace of chosen steps, the operators' table, and the parts of a start."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from tests.clock import Clock
from training.timing.profiling import OPERATORS, StartUp, StepProfiler, operator_table


def test_chosen_steps_are_profiled_and_no_others(tmp_path: Path) -> None:
    said: list[str] = []
    profiler = StepProfiler((2, 3), tmp_path / "profile", rank=0, say=said.append)
    for step in range(1, 6):
        with profiler.step():
            torch.ones(step, 10) @ torch.ones(10, 3)
        assert len(said) == (2 if step >= 3 else 0)
    profiler.finish()
    assert len(said) == 2 and "aten::mm" in said[0] and "profile of 2 step(s)" in said[1]
    trace = json.loads((tmp_path / "profile" / "trace_rank0.json").read_text())
    products = [e["args"]["Input Dims"][0] for e in trace["traceEvents"] if e.get("name") == "aten::mm"]
    assert products == [[2, 10], [3, 10]]


def test_a_run_that_ends_early_still_writes_its_profile(tmp_path: Path) -> None:
    said: list[str] = []
    profiler = StepProfiler((1, 9), tmp_path, rank=1, say=said.append)
    with profiler.step():
        torch.ones(3).exp()
    profiler.finish()
    assert "profile of 1 step(s), rank 1" in said[1] and (tmp_path / "trace_rank1.json").is_file()


def test_without_steps_nothing_is_profiled(tmp_path: Path) -> None:
    profiler = StepProfiler((), tmp_path / "profile", rank=0, say=pytest.fail)
    for _ in range(3):
        with profiler.step():
            pass
    profiler.finish()
    assert not (tmp_path / "profile").exists()


def test_the_table_has_the_most_expensive_operators_in_order() -> None:
    events = [SimpleNamespace(key=f"op{i}", self_cpu_time_total=1000 * i, count=2 * i) for i in range(15)]
    header, *rows = operator_table(events, "self_cpu_time_total", steps=2).splitlines()
    assert "operator" in header and len(rows) == OPERATORS
    assert [row.split()[0] for row in rows] == [f"op{i}" for i in range(14, 4, -1)]
    assert rows[0].split() == ["op14", "7.00", "13.3%", "14"]


def test_a_starts_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    start_up = StartUp()
    assert start_up.began == pytest.approx(psutil.Process().create_time() - psutil.boot_time())
    clock = Clock()
    monkeypatch.setattr(time, "clock_gettime", lambda which: clock())
    for part, seconds in (("imports", 2.25), ("engine", 0.5)):
        clock.now = start_up.began + seconds if part == "imports" else clock.now + seconds
        start_up.mark(part)
    assert start_up.seconds() == {"imports": 2.25, "engine": 0.5, "whole": 2.75}
    assert "from the command to the end of the first step" in start_up.sentence()


def test_the_first_part_is_not_longer_than_the_process() -> None:
    """The kernel gives the time of the boot in whole seconds; the rest of a second must not be counted."""
    code = (
        "from training.timing.profiling import StartUp; start_up = StartUp(); start_up.mark('part'); "
        "print(start_up.seconds()['whole'])"
    )
    root = Path(__file__).resolve().parents[2]
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) <= time.perf_counter() - begin + 0.02  # the kernel counts hundredths


def test_a_start_is_timed_without_loading_torch() -> None:
    code = (
        "import sys; from training.timing.profiling import StartUp, StepProfiler; StartUp().mark('imports'); "
        "StepProfiler((), None, 0, print).finish(); assert 'torch' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_under_a_launcher_the_start_begins_with_the_launcher(tmp_path: Path) -> None:
    """A parent whose command line has `deepspeed` in it."""
    launcher = tmp_path / "deepspeed.py"
    launcher.write_text(
        "import subprocess, sys, time\ntime.sleep(0.3)\n"
        "code = 'from training.timing.profiling import StartUp; print(list(StartUp().seconds().items()))'\n"
        "sys.exit(subprocess.run([sys.executable, '-c', code]).returncode)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, launcher], cwd=root, capture_output=True, text=True, check=True)
    (name, seconds), _ = eval(done.stdout)
    assert name == "launcher" and seconds >= 0.3
