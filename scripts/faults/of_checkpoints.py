"""Faults of checkpoints: files that are cut short, changed or missing."""

import shutil
from collections.abc import Callable
from pathlib import Path

from .runs import START_LIMIT_S, Stage, TortureError
from .table import Fault, Scene, Seen

BEFORE, AFTER = Stage(2, 9), Stage(2, 18)
"""Where the run stands when its checkpoint is damaged, and where it ends."""
NEWEST = "step_00000009"


def stopped_run(scene: Scene) -> None:
    """Put a run of two checkpoints into the scene."""
    made = scene.bench.folder / "stopped"
    if not (made / "checkpoints" / NEWEST / "manifest.json").is_file():
        shutil.rmtree(made, ignore_errors=True)
        job = scene.bench.start_stage(made, BEFORE, moves=False)
        if set(job.wait(START_LIMIT_S)) != {0}:
            raise TortureError(f"a run that nobody disturbed did not end well:\n{job.printed()}")
    shutil.copytree(made, scene.run_dir)


def largest(checkpoint: Path) -> Path:
    return max(
        (file for file in checkpoint.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
    )


def truncate(checkpoint: Path) -> None:
    file = largest(checkpoint)
    with file.open("r+b") as content:
        content.truncate(file.stat().st_size // 2)


def flip_a_bit(checkpoint: Path) -> None:
    file = largest(checkpoint)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove(checkpoint: Path) -> None:
    largest(checkpoint).unlink()


def newest(damage: Callable[[Path], None]) -> Callable[[Scene], Seen]:
    """The newest checkpoint is damaged: the run goes on from the one before it."""

    def play(scene: Scene) -> Seen:
        stopped_run(scene)
        damage(scene.run_dir / "checkpoints" / NEWEST)
        seen = scene.end(scene.start("--train.steps", str(AFTER.steps)))
        seen.afterwards = scene.exact(scene.bench.reference([AFTER]))
        if not (scene.run_dir / "checkpoints" / f"damaged_{NEWEST}").is_dir():
            seen.problems.append(f"there is no damaged_{NEWEST}")
        return seen

    return play


def every_one(scene: Scene) -> Seen:
    stopped_run(scene)
    for checkpoint in (scene.run_dir / "checkpoints").glob("step_*"):
        flip_a_bit(checkpoint)
    before = (scene.run_dir / "metrics.jsonl").read_text()
    options = ["--train.steps", str(AFTER.steps)]
    seen = scene.end(scene.start(*options))
    seen.afterwards = scene.goes_on("--restart", *options, reference=scene.bench.reference([AFTER]))
    kept = [file for file in scene.run_dir.rglob("metrics*") if file.read_text() == before]
    if not kept:
        seen.problems.append("--restart has not kept the old metrics.jsonl")
    return seen


NONE_WHOLE = r"error: no checkpoint .* is whole.*--restart"
DAMAGED = r"step_00000009.*damaged"
FAULTS = (
    Fault("checkpoint truncated", 60, (0,), "finished", DAMAGED, "exact", newest(truncate)),
    Fault("checkpoint bit-flipped", 60, (0,), "finished", DAMAGED, "exact", newest(flip_a_bit)),
    Fault("checkpoint file missing", 60, (0,), "finished", DAMAGED, "exact", newest(remove)),
    Fault("all checkpoints damaged", 30, (2,), None, NONE_WHOLE, "exact", every_one),
)
