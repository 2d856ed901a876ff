"""Faults of folders and hosts: full disks, folders that cannot be written, two runs in one, a port in use."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from .jobs import wait_until
from .runs import START_LIMIT_S
from .table import Fault, Scene, Seen

DISK_MB = 40
PIECE = 2**20
LEFT_FOR_SMALL_FILES = 150_000
"""Bytes that stay free where a checkpoint finds no place."""
NO_SPACE = r"space is left|free some space"
UNWRITABLE = r"error: nothing can be written to"
IN_USE = r"error: .*trained by another process"
SLOW_NORM = """
import time
import torch

class LayerNorm(torch.nn.LayerNorm):
    def __init__(self, ndim, bias):
        super().__init__(ndim, bias=bias)

    def forward(self, x):
        time.sleep(0.1 if self.training else 0)
        return super().forward(x)
"""


@cache
def can_mount() -> bool:
    """Whether this user may mount file systems: root on a machine of its own, nobody in most containers."""
    with tempfile.TemporaryDirectory() as folder:
        done = mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
        if done:
            subprocess.run(["umount", folder], check=True)
        return done


def mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    except OSError:
        return False


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of DISK_MB, mounted at the folder."""
    folder.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """A file beside the run that leaves so many bytes of its disk free, whatever the run writes meanwhile."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while True:
            stat = os.statvfs(folder)
            more = stat.f_bavail * stat.f_frsize - leave
            try:
                if more <= 0 or not file.write(bytes(min(more, PIECE))):
                    return ballast
            except OSError:  # the run has taken the rest
                return ballast


def full_disk(scene: Scene, leave: int, step: int, *options: str) -> Seen:
    """The disk is full from a step on; then it has free space again."""
    disk = scene.run_dir
    with small_disk(disk):
        scene.run_dir = disk / "run"
        words = scene.long(*options)
        job = scene.start(*words)
        scene.reached(job, step)
        # It is written beside the loop, which goes on meanwhile.
        wait_until(lambda: job.is_over() or any(scene.run_dir.glob("checkpoints/step_*")), START_LIMIT_S)
        since = job.seconds()
        ballast = fill(disk, leave)
        seen = scene.end(job, since)
        good = sorted((scene.run_dir / "checkpoints").glob("step_*"))
        if not good:
            seen.problems.append("no checkpoint was left")
        ballast.unlink()
        seen.afterwards = scene.goes_on(*words)
    return seen


def disk_full_in_checkpoint(scene: Scene) -> Seen:
    return full_disk(scene, LEFT_FOR_SMALL_FILES, 4)


def disk_full_in_metrics(scene: Scene) -> Seen:
    # No checkpoint follows soon, and so a line of metrics is the first that finds no place.
    return full_disk(scene, 0, 21, "--train.checkpoint_every", "20")


def read_only_folder(scene: Scene) -> Seen:
    disk = scene.run_dir
    disk.mkdir()
    mount("--bind", str(disk), str(disk))
    mount("-o", "remount,ro,bind", str(disk))
    try:
        scene.run_dir = disk / "run"
        seen = scene.end(scene.start())
        mount("-o", "remount,rw,bind", str(disk))
        seen.afterwards = scene.goes_on()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    return seen


def two_runs_on_one_folder(scene: Scene) -> Seen:
    design = scene.bench.folder / "slow_norm.py"
    design.write_text(SLOW_NORM)
    options = scene.long("--model.norm", f"{design}:LayerNorm")
    first = scene.start(*options)
    scene.reached(first, 1)
    second = scene.bench.start(scene.run_dir, *options, ranks=2, name="second")
    seen = scene.end(second)
    if first.is_over():
        seen.problems.append("the first run ended too early to tell")
    statuses = first.wait(START_LIMIT_S)
    seen.status = scene.status()
    seen.afterwards = scene.exact() if set(statuses) == {0} else f"the first run ended with {statuses}"
    return seen


def port_taken(scene: Scene) -> Seen:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        job = scene.start(port=other.getsockname()[1])
        seen = scene.end(job, ranks=[0])
    job.send(signal.SIGKILL)
    wait_until(job.is_over, 10)
    seen.afterwards = scene.goes_on()
    shutil.rmtree(scene.run_dir, ignore_errors=True)
    return seen


MOUNTED = (
    Fault("disk full in a checkpoint", 30, (1,), "failed", NO_SPACE, "exact", disk_full_in_checkpoint),
    Fault("disk full in metrics", 30, (1,), None, NO_SPACE, "exact", disk_full_in_metrics),
    Fault("read-only folder", 30, (2,), "", UNWRITABLE, "exact", read_only_folder),
)
"""Need a file system of their own."""
FAULTS = (
    Fault("two runs on one folder", 60, (2,), "finished", IN_USE, "exact", two_runs_on_one_folder),
    Fault("port taken", 30, (2,), "", r"error: port \d+ is taken", "exact", port_taken),
)  # fmt: skip
