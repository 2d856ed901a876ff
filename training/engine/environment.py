"""What the environment says about this process: how many ranks there are, and which of them it is."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import LauncherError, did_you_mean

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What every launcher sets, all of them."""
OF_HOST = ("LOCAL_SIZE", "LOCAL_WORLD_SIZE")
"""Ranks of this host, as DeepSpeed's launcher and torchrun name them."""
OURS = ("NORMLAB_FOOTERS_DIR", "NORMLAB_HASH_DIR", "NORMLAB_JSONL_DIR", "NORMLAB_SAMPLE_DIR")
"""Variables that NormLab reads."""
TASKS = {"srun": "SLURM_STEP_NUM_TASKS", "mpirun": "OMPI_COMM_WORLD_SIZE"}
"""How many processes were started by what is no launcher."""
TIMEOUT = "DEEPSPEED_TIMEOUT"


@dataclass(frozen=True)
class Launch:
    """What a launcher tells a rank.

    Attributes:
        rank: its number, from 0.
        local_rank: its number on its host, from 0.
        world_size: how many ranks there are.
        host: where rank 0 listens.
        port: where rank 0 listens.
        ranks_here: how many ranks its host has.
    """

    rank: int
    local_rank: int
    world_size: int
    host: str
    port: int
    ranks_here: int


def launch_from_environment() -> Launch | None:
    """What the launcher says; None under plain `python`. An empty variable counts as none.

    Raises LauncherError where variables are missing or do not go together, as after another launch.
    """
    given = {name: value for name in LAUNCHER if (value := os.environ.get(name))}
    if not given:
        return None
    if missing := [name for name in LAUNCHER if name not in given]:
        raise LauncherError(
            f"{_listed([*given])} set in the environment, but {_listed(missing)} not: {_unset(given)}, and a "
            "launcher sets all five: deepspeed --num_gpus N train.py ..."
        )
    numbers = {
        name: _whole_number(name, text, given) for name, text in given.items() if name != "MASTER_ADDR"
    }
    rank, local_rank, world_size, port = numbers.values()
    size_name = next((name for name in OF_HOST if os.environ.get(name)), "WORLD_SIZE")
    ranks_here = _whole_number(size_name, os.environ[size_name], given)
    for name, of, size in (("RANK", "WORLD_SIZE", world_size), ("LOCAL_RANK", size_name, ranks_here)):
        if numbers[name] >= size:
            raise LauncherError(
                f"{name} is {numbers[name]} in the environment, but {of} is {size} and ranks count from 0: "
                f"{_unset(given)}"
            )
    if not 1 <= port <= 65535:
        raise LauncherError(
            f"MASTER_PORT is {port} in the environment, but it must be from 1 to 65535: {_unset(given)}"
        )
    return Launch(rank, local_rank, world_size, given["MASTER_ADDR"], port, ranks_here)


def world_size_from_environment() -> int:
    """How many ranks the launcher started; 1 under plain `python`. Raises LauncherError."""
    launch = launch_from_environment()
    return launch.world_size if launch else 1


def rank_from_environment() -> int:
    """This process's number among the ranks; 0 under plain `python`. Raises LauncherError."""
    launch = launch_from_environment()
    return launch.rank if launch else 0


def check_local_rank(given: str | None) -> None:
    """Hold a launcher's --local_rank to LOCAL_RANK. Raises LauncherError."""
    launch = launch_from_environment()
    if given is None or (given == "-1" and launch is None):
        return
    number = _whole_number("--local_rank", given, ())
    if number != (launch.local_rank if launch else 0):
        instead = f"LOCAL_RANK is {launch.local_rank}" if launch else "no launcher's variables are set"
        raise LauncherError(f"--local_rank is {number}, but {instead} in the environment: leave it out")


def check_timeout() -> None:
    """Raise LauncherError where DEEPSPEED_TIMEOUT is no number of minutes."""
    minutes = os.environ.get(TIMEOUT)
    if minutes is not None and not (minutes.isdecimal() and int(minutes) >= 1):
        raise LauncherError(
            f"{TIMEOUT} is {minutes!r} in the environment, but it must be whole minutes, at least 1"
        )


def environment_notes() -> list[str]:
    """What is said of the environment at the start: variables that do nothing, ranks that are none."""
    notes = [
        f"{name} is set in the environment and does nothing{did_you_mean(name, OURS)}"
        for name in sorted(os.environ)
        if name.startswith("NORMLAB_") and name not in OURS
    ]
    if launch_from_environment() is None:
        notes += [
            f"{starter} started {tasks} processes, of which this one trains alone: it has no RANK; "
            "docs/multi_node.md says how they train together"
            for starter, name in TASKS.items()
            if (tasks := os.environ.get(name, "")).isdecimal() and int(tasks) > 1
        ]
    return notes


def _whole_number(name: str, text: str, given: Sequence[str] | dict[str, str]) -> int:
    if not (text.isascii() and text.isdecimal()) or (name == "WORLD_SIZE" and int(text) < 1):
        lowest = 1 if name in ("WORLD_SIZE", *OF_HOST) else 0
        where = " in the environment" if given else ""
        remedy = f": {_unset(given)}" if given else ""
        raise LauncherError(
            f"{name} is {text!r}{where}, but it must be a whole number of at least {lowest}{remedy}"
        )
    return int(text)


def _listed(names: Sequence[str]) -> str:
    """Names with the verb after them: `RANK is`, `RANK and WORLD_SIZE are`."""
    joined = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{joined} {'are' if len(names) > 1 else 'is'}"


def _unset(given: Sequence[str] | dict[str, str]) -> str:
    return f"`unset {' '.join(given)}` trains on one rank"
