"""Faults of processes: ranks and data workers that are killed or stopped, and signals."""

import signal
from collections.abc import Callable

from .jobs import send, wait_until
from .runs import START_LIMIT_S, Stage, steps_done
from .server import Request, run_module
from .table import Fault, Scene, Seen

VALIDATION = ("--data.validation_tokens", "150000")
"""A validation of a second or more, so that it can be met."""
NO_MORE = r"SIGKILL|was killed|no process|lives no more|without a word"
"""What `python -m training.run` says of a run whose processes are gone."""
KILLED = r"rank 1\b.*SIGKILL|SIGKILL.*rank 1\b"
IN_A_STEP = 10
"""A step that neither a validation nor a checkpoint follows."""
OF_LAUNCHER = (256 - signal.SIGKILL, 1)
"""DeepSpeed's launcher ends with the status of the first rank whose end it sees, the killed or the other."""
NO_SIGN = r"rank 1\b.*no sign of life"
WORKERS = ("--data.prefetch", "8")
"""The workers are never far ahead, so that the run needs them to its end."""


def process_killed(scene: Scene) -> Seen:
    job = scene.start()
    scene.reached(job, IN_A_STEP)
    job.send(signal.SIGKILL)
    since = job.seconds()
    seen = scene.end(job, since)
    forks = scene.bench.forks
    reader = forks.start(Request(run_module, ("training.run", [str(scene.run_dir)]), job.output))
    wait_until(lambda: forks.status(reader) is not None, 30)
    seen.text = scene.said(job)
    seen.afterwards = scene.goes_on()
    return seen


def rank_killed(scene: Scene) -> Seen:
    job = scene.start()
    scene.reached(job, IN_A_STEP)
    since = job.seconds()
    job.send(signal.SIGKILL, [1])
    seen = scene.end(job, since)
    seen.afterwards = scene.goes_on()
    return seen


def rank_killed_launched(scene: Scene) -> Seen:
    job = scene.start(launched=True)
    scene.reached(job, 4)
    since = job.seconds()
    job.send(signal.SIGKILL, [1])
    seen = scene.end(job, since)
    seen.afterwards = scene.goes_on()
    return seen


def rank_stopped(scene: Scene) -> Seen:
    job = scene.start()
    scene.reached(job, IN_A_STEP)
    since = job.seconds()
    job.send(signal.SIGSTOP, [1])
    seen = scene.end(job, since, ranks=[0])
    seen.afterwards = scene.goes_on()
    return seen


def worker(signum: signal.Signals) -> Callable[[Scene], Seen]:
    """A data worker gets this signal; the run is expected to go on by itself."""

    def play(scene: Scene) -> Seen:
        options = scene.long(*WORKERS, "--data.timeout_s", "3")
        job = scene.start(*options)
        scene.reached(job, IN_A_STEP)
        since = job.seconds()
        workers = job.workers(1)
        for pid in workers:
            send(pid, signum)
        seen = scene.end(job, since)
        if not workers:
            seen.problems.append("rank 1 had no data worker")
        seen.afterwards = scene.exact() if seen.exit_status == 0 else scene.goes_on(*options)
        return seen

    return play


def signal_in_a_step(signum: signal.Signals) -> Callable[[Scene], Seen]:
    """All ranks get this signal in a step."""

    def play(scene: Scene) -> Seen:
        job = scene.start()
        scene.reached(job, IN_A_STEP)
        since = job.seconds()
        job.send(signum)
        seen = scene.end(job, since)
        seen.afterwards = scene.goes_on()
        return seen

    return play


def signal_in_start_up(scene: Scene) -> Seen:
    job = scene.start()
    wait_until(lambda: (scene.run_dir / "logs").is_dir(), START_LIMIT_S)
    since = job.seconds()
    job.send(signal.SIGTERM)
    seen = scene.end(job, since)
    seen.status = ""
    seen.afterwards = scene.goes_on()
    return seen


def sigterm_in_validation(scene: Scene) -> Seen:
    stage = Stage(2, 8)
    reference = scene.bench.reference([stage], *VALIDATION)
    options = [*VALIDATION, "--train.steps", str(stage.steps)]
    job = scene.start(*options)
    wait_until(lambda: job.is_over() or steps_done(scene.run_dir) >= 4, START_LIMIT_S)
    since = job.seconds()
    job.send(signal.SIGTERM)
    seen = scene.end(job, since)
    seen.afterwards = scene.goes_on(*options, reference=reference)
    return seen


FAULTS = (
    Fault("process killed", 10, (-9,), "running", NO_MORE, "exact", process_killed),
    Fault("rank killed", 30, (1,), "failed", KILLED, "exact", rank_killed),
    Fault("rank killed under deepspeed", 40, OF_LAUNCHER, "failed", KILLED, "exact", rank_killed_launched),
    Fault("rank stopped", 90, (1,), "failed", NO_SIGN, "exact", rank_stopped),
    Fault("worker killed", 30, (0,), "finished", r"reads the data", "exact", worker(signal.SIGKILL)),
    Fault("worker stopped", 60, (0,), "finished", r"reads the data", "exact", worker(signal.SIGSTOP)),
    Fault("SIGTERM in start-up", 5, (75,), "", r"SIGTERM", "exact", signal_in_start_up),
    Fault("SIGTERM in validation", 5, (75,), "interrupted", r"SIGTERM", "exact", sigterm_in_validation),
    Fault("SIGTERM in a step", 5, (75,), "interrupted", "SIGTERM", "exact", signal_in_a_step(signal.SIGTERM)),
    Fault("SIGHUP", 5, (75,), "interrupted", r"SIGHUP", "exact", signal_in_a_step(signal.SIGHUP)),
)  # fmt: skip
