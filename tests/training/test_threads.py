"""How OpenMP's threads wait, and how many of them a rank has."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from training.engine import ranks
from training.engine.environment import LAUNCHER, OF_HOST

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", *LAUNCHER, *OF_HOST)


def openmp(code: str, **given: str) -> str:
    """What OpenMP says of itself when it is loaded, and what the code prints."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | {"OMP_DISPLAY_ENV": "true"} | given,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def policy_of(said: str) -> str:
    """OpenMP's wait policy: the libraries print it differently."""
    found = re.search(r"OMP_WAIT_POLICY ?= ?'(\w+)'", said)
    assert found is not None, said
    return found[1].lower()


def test_threads_wait_passively_unless_the_user_says_otherwise() -> None:
    code = "import model, torch"
    assert policy_of(openmp(code)) == "passive"
    assert policy_of(openmp(code, OMP_WAIT_POLICY="active")) == "active"


@pytest.mark.parametrize("command", ["train.py", "eval", "model.preflight", "data.sample"])
def test_every_command_decides_before_it_loads_torch(command: str) -> None:
    """The command's module is run until it imports torch, or to its end."""
    code = f"""
import os, runpy, sys
class Torch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch comes with", os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Torch())
command = {command!r}
sys.path.insert(0, ".")
runpy.run_path(command) if command.endswith(".py") else runpy.run_module(command)
import torch
"""
    assert "torch comes with passive" in openmp(code)


def joined(monkeypatch: pytest.MonkeyPatch, **environment: str) -> int:
    """The threads of a rank that joins three others on this machine, without a process group."""
    for name in (*VARIABLES, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    own = dict(zip(LAUNCHER, ("0", "0", "4", "127.0.0.1", "29500"), strict=True))
    for name, value in (own | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "_join", lambda *given: None)
    monkeypatch.setattr(ranks.deepspeed, "init_distributed", lambda **given: None)
    monkeypatch.setattr(ranks.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(ranks.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(ranks.os, "sched_getaffinity", lambda pid: set(range(12)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(7)  # stands for what OpenMP has made of OMP_NUM_THREADS
        ranks.join_ranks()
        return torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="ranks on GPUs do not share cores")
def test_ranks_share_the_cores_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert joined(monkeypatch) == 3
    assert joined(monkeypatch, LOCAL_SIZE="2") == 6
    assert joined(monkeypatch, LOCAL_SIZE="2", OMP_NUM_THREADS="7") == 7


@pytest.mark.skipif(torch.cuda.is_available(), reason="ranks on GPUs do not share cores")
def test_what_torchrun_sets_is_not_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}
    monkeypatch.setattr(psutil.Process, "environ", lambda self: {})
    assert joined(monkeypatch, **torchrun) == 3
    monkeypatch.setattr(psutil.Process, "environ", lambda self: {"OMP_NUM_THREADS": "1"})
    assert joined(monkeypatch, **torchrun) == 7
