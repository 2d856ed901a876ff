"""Runs over several hosts: two sets of namespaces with an sshd each, and a play of Slurm's part."""

import pydoc_data.topics
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.jobs import arguments, lines_of, make_job, run, steps_of, summary_of
from tests.processes import ENVIRONMENT, ROOT
from tests.scripts.cluster import ADDRESSES, PATH, Cluster, share_of_cores, two_hosts, wait_until

# The play of Slurm has a fixed port.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("serial")]

STEPS = 12


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_hosts(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    return make_job(tmp_path_factory.mktemp("job"), texts, STEPS)


@pytest.fixture(scope="module")
def on_one_host(job: Path) -> list[tuple[object, ...]]:
    """The steps of a run of two ranks on one host."""
    result = run(arguments(job, job / "one_host"), ranks=2)
    assert result.returncode == 0, result.stderr
    return steps_of(job / "one_host")


def test_on_two_hosts_a_run_that_lost_a_rank_goes_on_bit_for_bit(
    cluster: Cluster, job: Path, on_one_host: list[tuple[object, ...]]
) -> None:
    run_dir = job / "two_hosts"
    words, log = cluster.launch(arguments(job, run_dir)), job / "two_hosts.log"
    launched = cluster.start(words, log)
    metrics = run_dir / "metrics.jsonl"
    try:
        wait_until(
            lambda: launched.poll() is not None or (metrics.exists() and len(lines_of(run_dir)) >= 5),
            "a checkpoint and two steps more",
        )
        assert launched.poll() is None, log.read_text()
        killed = cluster.run(
            cluster.hosts[1].inside("pkill", "-KILL", "-f", "train.py")
        )  # sees its host only
        assert killed.returncode == 0
        assert launched.wait(timeout=300) != 0
    finally:
        launched.kill()
    assert summary_of(run_dir)["status"] != "finished"

    result = cluster.run(words)
    printed = result.stdout + result.stderr
    assert result.returncode == 0, printed
    for name in ADDRESSES:
        assert f"{name}: " in printed  # pdsh names the host of each line
    assert "node0: resumed from" in printed
    summary = summary_of(run_dir)
    assert summary["status"] == "finished" and summary["world_size"] == 2
    assert steps_of(run_dir) == on_one_host
    checkpoint = run_dir / summary["last_checkpoint"]
    assert len(list(checkpoint.glob("zero_pp_rank_*_optim_states.pt"))) == 2


# Runs a command once a task as Slurm does on nodes with one task each, and plays the time limit.
FAKE_SRUN = """#!{python}
import os, pathlib, signal, subprocess, sys, time
import psutil

words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0)
cores = {cores}
tasks = []
for task in range(int(os.environ["SLURM_NTASKS"])):
    numbers = dict(SLURM_PROCID=str(task), SLURM_NODEID=str(task), SLURM_LOCALID="0")
    bind = lambda: os.sched_setaffinity(0, cores[task])
    tasks.append(subprocess.Popen(words, env=os.environ | numbers, preexec_fn=bind))
metrics, limit = pathlib.Path("{metrics}"), pathlib.Path("{limit}")
while any(task.poll() is None for task in tasks):
    if limit.exists() and metrics.exists() and len(metrics.read_text().splitlines()) >= 5:
        limit.unlink()
        for process in psutil.Process().children(recursive=True):
            process.send_signal(signal.SIGUSR1)
    time.sleep(0.02)
sys.exit(max(task.returncode for task in tasks))
"""
FAKE_SCONTROL = """#!/bin/sh
[ "$1 $2" = "show hostnames" ] && echo localhost && echo another
[ "$1" = requeue ] && echo "$2" >> {requeued}
exit 0
"""


def test_under_slurm_a_run_saves_before_its_time_limit_and_is_queued_again(
    job: Path, tmp_path: Path, on_one_host: list[tuple[object, ...]]
) -> None:
    run_dir, requeued, limit = job / "slurm", tmp_path / "requeued", tmp_path / "limit"
    cores = [share_of_cores(host) for host in range(2)]
    srun = FAKE_SRUN.format(
        python=sys.executable, cores=cores, metrics=run_dir / "metrics.jsonl", limit=limit
    )
    for name, text in {"srun": srun, "scontrol": FAKE_SCONTROL.format(requeued=requeued)}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "4711",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    spooled = shutil.copy(ROOT / "scripts" / "slurm.sh", tmp_path / "slurm_script")
    options = [word for word in arguments(job, run_dir) if word not in ("--run_dir", str(run_dir))]
    limit.touch()
    for status in ("interrupted", "finished"):
        result = subprocess.run(
            [spooled, run_dir, *options],
            cwd=tmp_path,
            env=ENVIRONMENT | slurm | {"PATH": f"{tmp_path}:{PATH}"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        assert summary_of(run_dir)["status"] == status, result.stderr
        assert requeued.read_text() == "4711\n"
    assert steps_of(run_dir) == on_one_host


def test_ctrl_c_stops_all_hosts_and_the_run_is_saved(cluster: Cluster, job: Path) -> None:
    run_dir, log = job / "stopped", job / "stopped.log"
    launched = cluster.start(cluster.launch([*arguments(job, run_dir), "--train.steps", "200"]), log)
    metrics = run_dir / "metrics.jsonl"
    try:
        wait_until(
            lambda: launched.poll() is not None or (metrics.exists() and len(lines_of(run_dir)) >= 5),
            "steps on two hosts",
        )
        (launcher,) = psutil.Process(launched.pid).children()
        launcher.send_signal(signal.SIGINT)
        assert launched.wait(timeout=300) == 1, log.read_text()
    finally:
        launched.kill()
    wait_until(lambda: summary_of(run_dir)["status"] != "running", "the ranks save and end")
    summary = summary_of(run_dir)
    assert summary["status"] == "interrupted" and 3 < summary["step"] < 200
