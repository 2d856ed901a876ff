"""Runs over several hosts: two sets of namespaces with an sshd each, and a play of Slurm's part."""

import os
import pydoc_data.topics
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.jobs import ENVIRONMENT, ROOT, command, lines_of, make_job, run, steps_of, summary_of

pytestmark = pytest.mark.slow

STEPS = 12
NEEDED = ("ip", "unshare", "nsenter", "mount", "sshd", "ssh", "ssh-keygen", "pdsh", "pkill")
ADDRESSES = {"node0": "10.77.0.1", "node1": "10.77.0.2"}
INTERFACE = "lab0"
# What a host's first process does in its own network, process, host name and mount namespaces.
BOOT = """
set -e
hostname "$1"
mount --bind "$2/ssh" /etc/ssh
mount --bind "$2/hosts" /etc/hosts
mount -t tmpfs tmpfs /run
mkdir -m 755 /run/sshd
echo booted
exec "$(command -v sshd)" -D -e
"""
SSH = {
    "ssh_config": """
        IdentityFile /etc/ssh/login_key
        UserKnownHostsFile /etc/ssh/known_hosts
        StrictHostKeyChecking yes
        LogLevel ERROR
    """,
    "sshd_config": """
        HostKey /etc/ssh/host_key
        AuthorizedKeysFile /etc/ssh/login_key.pub
        PasswordAuthentication no
        PermitRootLogin prohibit-password
        UsePAM no
    """,
}
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
CARRIED = {name: ENVIRONMENT[name] for name in ("DS_ACCELERATOR", "WANDB_MODE", "OMP_WAIT_POLICY")}


def share_of_cores(host: int) -> list[int]:
    """A host's half of the cores, so that its rank has as many threads as each of two ranks on one host."""
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    return cores[host * half % len(cores) :][:half]


def wait_until(holds: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)


@dataclass
class Host:
    """A host: the `unshare` that keeps it, and its first process, the sshd, with which all others end."""

    name: str
    keeper: subprocess.Popen[bytes]
    first: int

    @classmethod
    def boot(cls, number: int, folder: Path) -> "Host":
        name = list(ADDRESSES)[number]
        words = ["unshare", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with open(folder / f"{name}.log", "wb") as log:
            keeper = subprocess.Popen(
                [*words, "sh", "-c", BOOT, "sh", name, folder],
                env=os.environ | {"PATH": PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: os.sched_setaffinity(0, share_of_cores(number)),
            )
        log_file = folder / f"{name}.log"
        wait_until(lambda: keeper.poll() is not None or "booted" in log_file.read_text(), f"boot of {name}")
        if keeper.poll() is not None:
            assert "booted" not in log_file.read_text(), log_file.read_text()
            pytest.skip(f"namespaces or mounts in them cannot be made here: {log_file.read_text()}")
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children")
        return cls(name, keeper, int(children.read_text()))

    def inside(self, *words: str) -> list[str]:
        """The command that runs `words` on this host, in the checkout."""
        return ["nsenter", f"--target={self.first}", "--mount", "--uts", "--net", "--pid",
                "env", f"--chdir={ROOT}", *words]  # fmt: skip

    def network(self, *words: str) -> None:
        """Configure the host's network with `ip`."""
        enter = ["nsenter", f"--target={self.first}", "--net", "ip", *words]
        subprocess.run(enter, env=os.environ | {"PATH": PATH}, check=True)

    def halt(self) -> None:
        if self.keeper.poll() is None:
            os.kill(self.first, signal.SIGKILL)
        self.keeper.wait()


@dataclass
class Cluster:
    hosts: list[Host]
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        # an absolute path, so that no .deepspeed_env in the checkout or at home counts
        return ENVIRONMENT | {"PATH": PATH, "DS_ENV_FILE": str(self.folder / "deepspeed_env")}

    def launch(self, train: list[str]) -> list[str]:
        """The `--hostfile` launch of train.py's arguments from the first host."""
        launcher = [
            sys.executable,
            "-m",
            "deepspeed.launcher.runner",
            "--hostfile",
            str(self.folder / "hostfile"),
        ]
        return self.hosts[0].inside(*launcher, "--master_addr", "node0", *train)

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=300)

    def start(self, words: list[str], log: Path) -> subprocess.Popen[bytes]:
        with open(log, "wb") as file:
            return subprocess.Popen(words, env=self.environment, stdout=file, stderr=file)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two hosts with names, joined by a cable, that log in to each other; nothing of this machine changes."""
    if os.geteuid() != 0:
        pytest.skip("only root can make namespaces")
    if missing := [name for name in NEEDED if not shutil.which(name, path=PATH)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "ssh").mkdir(mode=0o755)
    for key in ("host_key", "login_key"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "ssh" / key]
        subprocess.run(keygen, check=True)
    public_key = (folder / "ssh" / "host_key.pub").read_text()
    for name, text in SSH.items():
        (folder / "ssh" / name).write_text(text)
    (folder / "ssh" / "known_hosts").write_text("".join(f"{name} {public_key}" for name in ADDRESSES))
    addresses = [f"{address} {name}\n" for name, address in ADDRESSES.items()]
    (folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *addresses]))
    (folder / "hostfile").write_text("".join(f"{name} slots=1\n" for name in ADDRESSES))
    carried = CARRIED | {"GLOO_SOCKET_IFNAME": INTERFACE}
    (folder / "deepspeed_env").write_text("".join(f"{name}={value}\n" for name, value in carried.items()))

    hosts: list[Host] = []
    try:
        for number in range(len(ADDRESSES)):
            hosts.append(Host.boot(number, folder))
        cable = ["link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE]
        try:
            hosts[0].network(*cable, "netns", str(hosts[1].first))
        except subprocess.CalledProcessError:
            pytest.skip("network interfaces of type veth cannot be made here")
        for host in hosts:
            host.network("address", "add", f"{ADDRESSES[host.name]}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                host.network("link", "set", interface, "up")
        made = Cluster(hosts, folder)
        for name in ADDRESSES:
            login = hosts[0].inside("ssh", name, "true")
            wait_until(lambda login=login: made.run(login).returncode == 0, f"sshd of {name}")
        yield made
    finally:
        for host in hosts:
            host.halt()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    return make_job(tmp_path_factory.mktemp("job"), texts, STEPS)


@pytest.fixture(scope="module")
def on_one_host(job: Path) -> list[tuple[object, ...]]:
    """The steps of a run of two ranks on one host."""
    result = run(command(job, job / "one_host", ranks=2))
    assert result.returncode == 0, result.stderr
    return steps_of(job / "one_host")


def train_words(job: Path, run_dir: Path) -> list[str]:
    """train.py and its arguments."""
    words = command(job, run_dir)
    return words[words.index("train.py") :]


def test_on_two_hosts_a_run_that_lost_a_rank_goes_on_and_is_bit_for_bit_that_of_one_host(
    cluster: Cluster, job: Path, on_one_host: list[tuple[object, ...]]
) -> None:
    run_dir = job / "two_hosts"
    words, log = cluster.launch(train_words(job, run_dir)), job / "two_hosts.log"
    launched = cluster.start(words, log)
    metrics = run_dir / "metrics.jsonl"
    try:
        wait_until(
            lambda: launched.poll() is not None or (metrics.exists() and len(lines_of(run_dir)) >= 5),
            "a checkpoint and two steps more",
            seconds=120,
        )
        assert launched.poll() is None, log.read_text()
        killed = cluster.run(
            cluster.hosts[1].inside("pkill", "-KILL", "-f", "train.py")
        )  # sees its host only
        assert killed.returncode == 0
        assert launched.wait(timeout=60) != 0
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


def test_under_slurm_a_run_saves_before_the_time_limit_and_its_job_is_queued_again(
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
    arguments = [word for word in train_words(job, run_dir)[1:] if word not in ("--run_dir", str(run_dir))]
    limit.touch()
    for status in ("interrupted", "finished"):
        result = subprocess.run(
            [spooled, run_dir, *arguments],
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
    launched = cluster.start(cluster.launch([*train_words(job, run_dir), "--train.steps", "200"]), log)
    metrics = run_dir / "metrics.jsonl"
    try:
        wait_until(
            lambda: launched.poll() is not None or (metrics.exists() and len(lines_of(run_dir)) >= 5),
            "steps on two hosts",
            seconds=120,
        )
        (launcher,) = psutil.Process(launched.pid).children()
        launcher.send_signal(signal.SIGINT)
        assert launched.wait(timeout=60) == 1, log.read_text()
    finally:
        launched.kill()
    wait_until(lambda: summary_of(run_dir)["status"] != "running", "the ranks save and end")
    summary = summary_of(run_dir)
    assert summary["status"] == "interrupted" and 3 < summary["step"] < 200
