"""Work in processes: every result comes, errors are handed on, and no process outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import DataConfig, open_source, open_tokenizer
from data.parallel import in_processes, shard_runs_for, side_by_side

ROOT = Path(__file__).resolve().parents[2]


def test_work_in_processes_gives_every_result_and_hands_on_errors() -> None:
    def squares(number: int) -> Iterator[int]:
        if number == 30:
            raise ValueError("thirty is bad.")
        if number == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from (number, number * number)

    for workers in (1, 2, 5):
        found = sorted(in_processes(squares, range(20), workers))
        assert found == sorted([*range(20), *(n * n for n in range(20))])
        with pytest.raises(ValueError, match="thirty is bad"):
            list(in_processes(squares, range(35), workers))
    with pytest.raises(OSError, match="was killed"):
        list(in_processes(squares, range(35, 60), 2))


def test_runs_keep_row_groups_together_until_others_would_wait(tmp_path: Path) -> None:
    for name, rows, group in (("a", 30_000, 5_000), ("b", 30_000, 30_000)):
        pq.write_table(pa.table({"text": ["x"] * rows}), tmp_path / f"{name}.parquet", row_group_size=group)
    source = open_source(DataConfig(source=str(tmp_path)), open_tokenizer("bytes"))
    for workers in (1, 2, 16):
        made = shard_runs_for(workers, source.shards)
        assert [shard for run in made for shard in run] == list(source.shards)
        assert all(len({(shard.path, shard.group) for shard in run}) == 1 for run in made)
        assert len(made) >= min(60, 4 * workers) or workers == 1


def test_workers_end_soon_after_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import os, time; from pathlib import Path; from data.parallel import in_processes\n"
        "def work(n):\n"
        "    Path(f'pid{os.getpid()}').touch()\n"
        "    while True:\n"
        "        yield bytes(100_000)\n"
        "for _ in in_processes(work, range(3), 3): time.sleep(0.2)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment)
    wait_until(lambda: len(list(tmp_path.glob("pid*"))) == 3)
    parent.kill()
    parent.wait()
    pids = [int(path.name.removeprefix("pid")) for path in tmp_path.glob("pid*")]
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(is_done: Callable[[], bool]) -> None:
    end = time.monotonic() + 40
    while not is_done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_threads_give_results_in_order_and_begin_nothing_after_an_error() -> None:
    assert side_by_side(lambda number: number * 2, range(50), 8) == [2 * number for number in range(50)]
    begun: list[int] = []

    def fail(number: int) -> None:
        begun.append(number)
        raise OSError(f"number {number}")

    with pytest.raises(OSError, match=r"^number [01]$"):
        side_by_side(fail, range(1000), 2)
    assert len(begun) <= 2
