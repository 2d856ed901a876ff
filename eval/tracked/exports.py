"""An export in W&B: an artifact that says where it lies and which checkpoint it was made from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.run.reader import read_summary
from training.tracking.thread import WandbThread
from training.tracking.tracker import CONFIG_FACTS
from training.tracking.wandb_run import artifact_name, finish_run, new_id, reference, start_run

from .late import tracked_run


def log_export(run_dir: Path, step: int, folder: Path, say: Callable[[str], None]) -> None:
    """Log an export of the checkpoint at `step` as an artifact, by a W&B run of its own, of job type export.

    Online it is linked to the checkpoint's artifact, which that run uses; offline, where W&B cannot look one
    up, its metadata name it. A run without W&B gets nothing. Where W&B fails or hangs, that is said in one
    sentence.
    """

    def say_lost(reason: str) -> None:
        say(f"W&B does not know of the export ({reason}): {folder} is whole, though")

    try:
        if (noted := tracked_run(run_dir)) is None:
            return
        source = f"{artifact_name(noted, 'checkpoints')}:step_{step}"
        summary = read_summary(run_dir)
        metadata = {key: summary[key] for key in CONFIG_FACTS if key in summary}
        metadata |= {"step": step, "checkpoint": source, "run": noted["id"]}
        settings: dict[str, Any] = {
            key: noted[key] for key in ("project", "entity", "group", "tags") if key in noted
        }
        settings |= {"name": f"{noted['name']}-export", "job_type": "export"}

        def send() -> None:
            import wandb  # noqa: F401 (its time is that of the disk, and no part of the start's)

            run = start_run(settings, run_dir, new_id(), metadata, say, thread.start_now())
            thread.has_begun()
            if not run.offline:
                try:
                    run.use_artifact(source)
                except Exception as error:  # of a run that was not sent yet
                    say(f"W&B: the export is not linked to {source} ({' '.join(str(error).split())})")
            aliases = [f"step_{step}"]
            run.log_artifact(reference(artifact_name(noted, "export"), folder, metadata), aliases=aliases)
            finish_run(run)

        thread = WandbThread(say, say_lost, at_exit=lambda: None)
        thread.put(send)
        thread.close(lambda: None)
        thread.wait()
    except Exception as error:
        say_lost(f"{type(error).__name__}: {' '.join(str(error).split())}")
