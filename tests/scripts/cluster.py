"""Two hosts on this machine: two sets of namespaces with an sshd each."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import ENVIRONMENT, ROOT

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
CARRIED = ("DS_ACCELERATOR", "WANDB_MODE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")


def share_of_cores(host: int) -> list[int]:
    """A host's half of the cores, so that its rank has as many threads as each of two ranks on one host."""
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    return cores[host * half % len(cores) :][:half]


def wait_until(holds: Callable[[], object], what: str, seconds: float = 300.0) -> None:
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

    def launch(self, arguments: Sequence[str]) -> list[str]:
        """The `--hostfile` launch of train.py with these arguments from the first host."""
        launcher = [
            sys.executable,
            "-m",
            "deepspeed.launcher.runner",
            "--hostfile",
            str(self.folder / "hostfile"),
        ]
        return self.hosts[0].inside(*launcher, "--master_addr", "node0", "train.py", *arguments)

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=300)

    def start(self, words: list[str], log: Path) -> subprocess.Popen[bytes]:
        with open(log, "wb") as file:
            return subprocess.Popen(words, env=self.environment, stdout=file, stderr=file)


@contextmanager
def two_hosts(folder: Path) -> Iterator[Cluster]:
    """Two hosts with names, joined by a cable, that log in to each other; nothing of this machine changes.

    Where they cannot be made the test is skipped.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can make namespaces")
    if missing := [name for name in NEEDED if not shutil.which(name, path=PATH)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
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
    carried = {name: ENVIRONMENT[name] for name in CARRIED} | {"GLOO_SOCKET_IFNAME": INTERFACE}
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
