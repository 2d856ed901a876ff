"""Beginning a W&B run: online where that can be, else as a part of an offline one."""

import os
import re
import secrets
import shlex
import string
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from model.redaction import redact

from ..config.tracking import wandb_mode
from .thread import START_S, kill_service
from .wandb_parts import mend_parts, unsent_parts

AXES = ("step", "tokens", "total_flops", "gpu_hours", "cpu_rank_hours")
"""What all values can be drawn against: each row has them. W&B draws against the step unless asked."""
EXTREMES = {
    "train/loss": "min",
    "val/loss": "min",
    "val/bits_per_byte": "min",
    "train/grad_norm": "max",
    "train/lr": "max",
}
"""Of which values W&B's summary has more than the last."""
LONGEST_REASON = 200
"""Characters; a server may have answered with a page."""
OFFLINE_START_S = 10.0
"""Of the time of a start, what is kept for an offline run after an online one that failed."""


def start_run(
    settings: Mapping[str, Any],
    run_dir: Path,
    run_id: str,
    facts: dict[str, Any],
    say: Callable[[str], None],
    deadline: float,
) -> Any:
    """Begin a W&B run, or a start of one; offline where it cannot be online, which is said.

    A run that has parts which were not sent stays offline: they come before it. One that fails once the
    server was asked goes on offline under a new id: the server may have made that run in part, or remember
    that it was deleted, and then takes no rows of it.

    Args:
        settings: its project, name and the like.
        run_dir: gets W&B's own files unless WANDB_DIR names another folder.
        run_id: of the run.
        facts: its config.
        say: is told.
        deadline: when it must have begun, as `time.monotonic` counts; less than all of it is for the server.

    Raises what W&B does where it can be neither.
    """
    import wandb

    # W&B keeps the command line; here it has been read, and is of no other use
    sys.argv[1:] = map(redact, sys.argv[1:])
    folder = Path(os.environ.get("WANDB_DIR") or run_dir)
    mode: Any = wandb_mode().replace("dryrun", "offline")
    reason = None
    if mode == "online":
        waiting = "its earlier parts were not sent yet" if unsent_parts(folder / "wandb", run_id) else None
        reason = waiting or offline_reason()
    if reason:
        mode = "offline"
    mend_parts(folder / "wandb", run_id)

    def begin(mode: Any, run_id: str, timeout: float) -> Any:
        options = wandb.Settings(
            init_timeout=timeout,
            silent=True,
            console="off",
            quiet=True,
            # The command line and the git remote may have keys in them; environment.json has what matters.
            x_disable_meta=True,
            disable_git=True,
        )
        return wandb.init(
            **settings, mode=mode, dir=folder, id=run_id, resume="allow", config=facts, settings=options
        )

    if mode == "offline":
        run = begin(mode, run_id, START_S)
    else:
        try:
            run = begin(mode, run_id, max(1, deadline - time.monotonic() - OFFLINE_START_S))
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:LONGEST_REASON]
            end_service()
            mode, run_id = "offline", new_id()
            run = begin(mode, run_id, START_S)
    if mode == "offline":
        because = f" ({reason})" if reason else ""
        # All parts: each start writes one, a second in the same second as ID-1; none is sent twice.
        parts = f"{shlex.quote(str(Path(run.dir).parents[1]))}/offline-run-*-{run_id}*"
        say(f"W&B: offline run{because}; send it later with: wandb sync {parts}")
    for name in AXES:
        run.define_metric(name)
    run.define_metric("*", step_metric="step")
    for name, extreme in EXTREMES.items():
        run.define_metric(name, step_metric="step", summary=f"{extreme},last")
    return run


def end_service() -> None:
    """End wandb-core, and have the next run start another: it tries on with the run that a server refused."""
    import wandb

    kill_service()
    with suppress(Exception, SystemExit):  # W&B calls sys.exit where its process was killed
        wandb.teardown()


def new_id() -> str:
    """Eight letters and digits, as W&B's own ids are."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def finish_run(run: Any, exit_code: int = 0) -> None:
    """End a run, and W&B's process: it writes on after `finish`, which another start must not meet."""
    import wandb

    run.finish(exit_code=exit_code)
    wandb.teardown()


def artifact_name(noted: Mapping[str, Any], what: str) -> str:
    """The name of a run's artifact, from what summary.json notes of its W&B run."""
    return f"{re.sub(r'[^-.0-9A-Za-z_]', '-', noted['name'])[:80]}-{noted['id']}-{what}"


def reference(name: str, folder: Path, metadata: Mapping[str, Any]) -> Any:
    """An artifact of type model that says where a folder lies; none of its files is read."""
    import wandb

    artifact = wandb.Artifact(name, type="model", metadata=dict(metadata))
    artifact.add_reference(folder.resolve().as_uri(), checksum=False)
    return artifact


def offline_reason() -> str | None:
    """Why an online run cannot be had, found out within seconds and without a prompt; None if it can."""
    import requests
    import wandb

    settings = wandb.setup().settings
    if not settings.api_key and requests.utils.get_netrc_auth(settings.base_url) is None:
        return "no W&B key"
    try:
        requests.head(settings.base_url, timeout=3)
    except requests.RequestException:
        return f"{settings.base_url} cannot be reached"
    return None
