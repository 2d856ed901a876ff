"""Evaluations of a run's checkpoints, logged in its W&B run by whichever process made them."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout

from training.checkpoints.found import complete_checkpoints
from training.config.tracking import TrackingConfig, wandb_mode
from training.evaluations import unsent
from training.run.reader import read_json, read_metrics, read_summary
from training.run_files import StateFile
from training.tracking.thread import END_S, wait_for_closed
from training.tracking.tracker import CONFIG_FACTS, Tracker


def log_late(
    run_dir: Path,
    step: int,
    say: Callable[[str], None],
    again: str = "the same command",
    is_over: Callable[[], bool] | None = None,
) -> None:
    """Send what RUN_DIR/eval holds, and the run's W&B run has not, to that run.

    That is the scores and slices of the checkpoint at `step`, and those of others that could not be sent
    before. A process that trains the run sends them itself, after its next validation or at its end. A run
    without W&B gets nothing. Where W&B fails or hangs, that is said in one sentence: the evaluation is done.

    Args:
        run_dir: the run folder, or one without a run.
        step: of the checkpoint that was evaluated.
        say: is told where the scores went, if that is not plain.
        again: the command that sends them where W&B has not taken them.
        is_over: given where a training ends with this. W&B has 30 s in all then, that of the training
            included, and no more once this is true.
    """
    try:
        send(run_dir, f"the scores of step {step}", say, is_over=is_over)
    except Exception as error:
        what = " ".join(str(error).split())
        say(
            f"W&B has not got the scores of step {step} ({type(error).__name__}: {what}): {again} sends them "
            "again"
        )


def is_being_trained(run_dir: Path) -> bool:
    """Whether a training is in its loop: it will look for scores once more before it ends.

    Its status changes before it does. A killed training has left its status, but no lock.
    """
    if read_summary(run_dir)["status"] != "running":
        return False
    lock = FileLock(run_dir / "logs" / "rank0.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def tracked_run(run_dir: Path) -> dict[str, Any] | None:
    """What summary.json notes of the run's W&B run; None where it has none, or W&B is disabled here."""
    if not (run_dir / "summary.json").is_file() or wandb_mode() == "disabled":
        return None
    noted = read_summary(run_dir).get("wandb")
    if not noted or noted.get("mode") == "disabled":
        return None
    if "id" in noted:
        return noted
    # A run from before the id was noted: its checkpoints have it, and W&B's files say that there is a run.
    for checkpoint in reversed(complete_checkpoints(run_dir).values()):
        run_id = read_json(checkpoint / "trainer_state.json", StateFile).get("wandb_id")
        if run_id and any((run_dir / "wandb").glob(f"*run-*-{run_id}*")):
            return {**noted, "id": run_id}
    return None


def send(
    run_dir: Path,
    what: str,
    say: Callable[[str], None],
    others: Mapping[int, Mapping[str, float]] = MappingProxyType({}),
    is_over: Callable[[], bool] | None = None,
) -> None:
    """Send what the run's W&B run has not: of its evaluations, and of `others` by step and name.

    Args:
        run_dir: the run folder.
        what: is to be sent, in words.
        say: is told where it went, if that is not plain.
        others: rows that nothing in the run folder holds.
        is_over: as of `log_late`.

    Raises TimeoutError where another process writes the W&B run all the time, and ConnectionError where a
    training in this process has lost W&B.
    """
    until = math.inf if is_over is None else time.monotonic() + END_S
    is_over = is_over or (lambda: False)
    noted = tracked_run(run_dir)
    if noted is None or not any(unsent(run_dir, noted["id"], others)):
        return
    summary = read_summary(run_dir)
    config = {key: summary[key] for key in CONFIG_FACTS if key in summary}
    # A training in this process has ended, and W&B may have been busy with it since.
    if lost := wait_for_closed(is_over, until):
        raise ConnectionError(f"the training has lost W&B: {lost}")
    tracker = Tracker(TrackingConfig(), run_dir, noted["id"], {"run": config}, say)
    if not tracker.take_turn(wait_s=0):
        if is_being_trained(run_dir):
            say(f"W&B: {run_dir} is being trained, and sends {what} itself after its next validation")
            return
        if not tracker.take_turn(wait_s=max(0, min(END_S, until - time.monotonic()))):
            raise TimeoutError("another process writes its W&B run")
    steps = (line["step"] for line in read_metrics(run_dir))
    tracker.go_on(noted, after=max(steps, default=0))
    tracker.log_evaluations(others)
    summary = read_summary(run_dir)  # what a training has come to that was just ending
    has_failed = summary["status"] not in ("finished", "interrupted")
    tracker.finish(summary, exit_code=int(has_failed or "error" in summary))
    tracker.wait(is_over, until)
