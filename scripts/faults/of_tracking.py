"""Faults of tracking: a W&B that hangs at the start, in the loop or at the end, or does not listen."""

from collections.abc import Callable

from .jobs import free_port
from .table import Fault, Scene, Seen
from .web import serving

START_S, END_S = 20, 30
"""So long W&B may hold the start and the end of a run, docs/wandb.md says."""
OWN_S = 25
"""The run's own seconds, and those of W&B's processes, on a busy machine."""


def tracked(scene: Scene, url: str) -> Seen:
    folder = scene.bench.folder / "wandb_home"
    folder.mkdir(exist_ok=True)
    environment = {
        "WANDB_MODE": "online", "WANDB_BASE_URL": url, "WANDB_API_KEY": "0123456789" * 4,
        "WANDB_CONFIG_DIR": str(folder), "HOME": str(folder), "NETRC": str(folder / "netrc"),
    }  # fmt: skip
    seen = scene.end(scene.start(environment=environment))
    seen.afterwards = scene.exact()
    return seen


def hangs(at: bytes) -> Callable[[Scene], Seen]:
    """W&B answers nothing from the first request on that holds `at`."""

    def play(scene: Scene) -> Seen:
        with serving() as server:
            server.hangs_at = at
            seen = tracked(scene, server.url)
            if not server.fault:
                seen.problems.append("W&B was not asked for what it was to hang at")
            return seen

    return play


def nobody_listens(scene: Scene) -> Seen:
    return tracked(scene, f"http://127.0.0.1:{free_port()}")


SAID = r"W&B(: offline run| is lost| does not take| lacks)"
FAULTS = (
    Fault("W&B hanging at the start", START_S + OWN_S, (0,), "finished", SAID, "exact", hangs(b"")),
    Fault("W&B hanging in the loop", END_S + OWN_S, (0,), "finished", SAID, "exact", hangs(b"file_stream")),
    Fault("W&B hanging at the end", END_S + OWN_S, (0,), "finished", SAID, "exact", hangs(b'"exitcode":0')),
    Fault("W&B not there", START_S + OWN_S, (0,), "finished", SAID, "exact", nobody_listens),
)
