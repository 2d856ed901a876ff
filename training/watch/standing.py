"""Where a run stands, from its folder alone: alive or dead, how far, why it ended, and what to type next."""

import json
import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import DIVERGED, FAILED, INTERRUPTED, UserError

from ..checkpoints.found import complete_checkpoints, damage
from ..run.reader import (
    damaged_folders,
    is_being_trained,
    last_step,
    read_environment,
    read_json,
    read_summary,
    step_folders,
)
from ..run.restart import runs_put_aside, without_restart
from ..run_files import FailureFile

DEAD = "dead"
"""What readers call a run whose summary says `running`, and which no process trains."""
SILENT_S = 60.0
"""After so long without a heartbeat something is wrong: there is one every ten seconds."""
STATUSES = {"finished": 0, "running": 0, "interrupted": INTERRUPTED, "diverged": DIVERGED}
"""The exit status that tells how a run stands; FAILED for all others."""


@dataclass(frozen=True)
class Standing:
    """What is known of a run.

    Attributes:
        run_dir: its folder.
        status: of summary.json, or `dead`.
        is_alive: whether a process is at it now.
        heartbeat_age_s: seconds since its last sign of life; None where it gave none.
        step: the last one in its metrics.
        steps: how many it is to make.
        checkpoint: its newest checkpoint; None where there is none.
        problem: what is wrong with that one.
        good_checkpoint: the newest with all of its files; None where there is none.
        damaged: the checkpoints that an earlier start found damaged.
        changes: of its recipe under way, by `--allow_recipe_change`: step, key, value before and now.
        put_aside: the runs that `--restart` has put aside in it, the latest last.
        failure: of failure.json, or what an older summary says; None where the last start did not fail.
        command: what goes on with the run; None where the folder does not say.
    """

    run_dir: Path
    status: str
    is_alive: bool
    heartbeat_age_s: float | None
    step: int | None
    steps: int | None
    checkpoint: Path | None
    problem: str | None
    good_checkpoint: Path | None
    damaged: tuple[Path, ...]
    changes: tuple[Mapping[str, Any], ...]
    put_aside: tuple[Path, ...]
    failure: Mapping[str, Any] | None
    command: str | None

    @property
    def exit_status(self) -> int:
        """As the run's own: 0 finished or under way, 75 stopped and saved, 3 diverged, 1 failed or dead."""
        return 0 if self.is_alive else STATUSES.get(self.status, FAILED)


def status_now(run_dir: Path, summary: Mapping[str, Any]) -> str:
    """The status of a run; `dead` where it says `running` and is not.

    Its rank 0 holds a lock as long as it lives. A copy of the folder may lack the file: there the heartbeat
    tells, and where there is none either, the summary is believed.
    """
    status = str(summary.get("status", "unknown"))
    if status != "running":
        return status
    with suppress(OSError):
        if is_being_trained(run_dir):
            return status
    if (run_dir / "logs" / "rank0.lock").is_file():
        return DEAD
    heartbeat = summary.get("heartbeat")
    return DEAD if heartbeat is not None and time.time() - heartbeat > SILENT_S else status


def standing(run_dir: Path, checksums: bool = False) -> Standing:
    """Look at a run.

    Args:
        run_dir: its folder.
        checksums: read the newest checkpoint to its end, instead of looking at sizes.

    Raises UserError where there is no run.
    """
    summary = read_summary(run_dir)
    checkpoints = step_folders(run_dir / "checkpoints")
    good = complete_checkpoints(run_dir)
    newest = max(checkpoints, default=None)
    problem = None
    if newest is not None and newest not in good:
        problem = "not all of its files are there with their sizes"
    elif newest is not None and checksums:
        problem = damage(checkpoints[newest])
    if problem and newest is not None:
        good.pop(newest, None)
    status, heartbeat = status_now(run_dir, summary), summary.get("heartbeat")
    return Standing(
        run_dir=run_dir,
        status=status,
        is_alive=is_being_trained(run_dir),
        heartbeat_age_s=None if heartbeat is None else max(0.0, time.time() - heartbeat),
        step=last_step(run_dir) or summary.get("step"),
        steps=summary.get("steps"),
        checkpoint=None if newest is None else checkpoints[newest],
        problem=problem,
        good_checkpoint=good[max(good)] if good else None,
        damaged=tuple(damaged_folders(run_dir / "checkpoints")),
        changes=tuple(summary.get("recipe_changes") or ()),
        put_aside=tuple(runs_put_aside(run_dir)),
        failure=_failure(run_dir, summary),
        command=_command(run_dir),
    )


def describe(run: Standing) -> list[str]:
    """The sentences that a person reads, the most important first."""
    where = "" if run.step is None else f" at step {run.step:,}"
    if where and run.steps:
        where += f" of {run.steps:,}"
    lines = [f"{run.run_dir} {_how(run)}{where}"]
    if run.failure:
        lines.append(f"why: {run.failure['sentence']}")
        facts = [f"rank {run.failure['rank']}", f"host {run.failure['host']}"]
        facts += [f"signal {run.failure['signal']}"] if run.failure["signal"] else []
        if run.failure["step"] is not None:
            facts.append(f"after step {run.failure['step']:,}")
        lines.append(f"first to fail: {', '.join(facts)}; its log is {run.run_dir / run.failure['log']}")
    if run.heartbeat_age_s is not None:
        lines.append(f"last sign of life: {_ago(run.heartbeat_age_s)}")
    if run.checkpoint is None:
        lines.append("checkpoint: none yet")
    elif run.problem:
        before = (
            f"the run goes on from {run.good_checkpoint.name}" if run.good_checkpoint else "none is whole"
        )
        lines.append(f"checkpoint: {run.checkpoint} is damaged ({run.problem}); {before}")
    else:
        lines.append(f"checkpoint: {run.checkpoint}, all of its files are there")
    lines += [f"damaged before: {path}" for path in run.damaged]
    if run.changes:
        changes = (
            f"{one['key']} is {json.dumps(one['now'])} from step {one['step']:,} on, after "
            f"{json.dumps(one['before'])}"
            for one in run.changes
        )
        lines.append(f"changed under way: {'; '.join(changes)}")
    if run.put_aside:
        lines.append(f"begun again by --restart; what was here before: {', '.join(map(str, run.put_aside))}")
    if next_words := _next(run):
        lines.append(next_words)
    return lines


def as_json(run: Standing) -> dict[str, Any]:
    """The same for programs."""
    facts = {key: str(value) if isinstance(value, Path) else value for key, value in vars(run).items()}
    paths = {key: list(map(str, facts[key])) for key in ("damaged", "put_aside")}
    return facts | paths | {"exit_status": run.exit_status}


def _how(run: Standing) -> str:
    silent = run.heartbeat_age_s is not None and run.heartbeat_age_s > SILENT_S
    if run.is_alive and run.status == "running":
        return "hangs, or its process is stopped: it gives no sign of life," if silent else "is running"
    if run.is_alive:
        return "is being evaluated," if run.status == "finished" else "starts, or is about to end,"
    return {
        "finished": "is finished",
        "interrupted": "is stopped and saved",
        "diverged": "diverged",
        "failed": "failed",
        DEAD: "is dead: its processes ended without a word (all of them killed, or the host went down)",
    }.get(run.status, f"is {run.status}")


def _next(run: Standing) -> str | None:
    if run.is_alive:
        return None
    if run.status == "finished":
        return f"next: python -m eval.scorecard {shlex.quote(str(run.run_dir))}"
    again = run.command or "the command that began it"
    if run.status == "diverged":
        return (
            "next: lower the learning rate, lengthen the warm-up or try --train.on_divergence rollback "
            f"(docs/endings.md), in another run folder or with --restart: {again}"
        )
    return f"next: {again}"


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.1f} h ago"


def _failure(run_dir: Path, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """What failure.json holds, or the summary's word where the disk was full or the run is older."""
    if summary.get("status") != "failed":
        return None
    facts: dict[str, Any] = {"host": "unknown", "signal": None, "step": summary.get("step")}
    facts |= {"rank": summary.get("failed_rank", 0), "log": summary.get("log", "logs/rank0.log")}
    facts["sentence"] = summary.get("error", "it is not known why")
    with suppress(UserError, OSError):
        facts |= read_json(run_dir / "failure.json", FailureFile)
    return facts


def _command(run_dir: Path) -> str | None:
    """The launcher is not known, so that it is DeepSpeed's for several ranks."""
    try:
        environment = read_environment(run_dir)
    except (UserError, OSError):
        return None
    if "command" not in environment:
        return None
    words = [word for word in environment["command"] if not word.startswith("--local_rank=")]
    words = without_restart(words)
    ranks = environment.get("world_size", 1)
    kind = "--num_gpus" if environment.get("gpus") else "--num_accelerators"
    launcher = ["python"] if ranks == 1 else ["deepspeed", kind, str(ranks)]
    return shlex.join([*launcher, "train.py", *words])
