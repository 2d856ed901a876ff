"""Faults of data: files cut short under a run, and servers that hang or trickle."""

import shutil
from collections.abc import Callable

from .table import Fault, Scene, Seen
from .web import serving

FILE = r"error: .*topics\.parquet"
SERVER = r"error: .*127\.0\.0\.1:\d+/topics\.parquet"
LITTLE_AHEAD = ("--data.prefetch", "8", "--data.timeout_s", "3")
"""The data are read as they are needed, so that the fault is met in the middle of the run."""


def data_truncated(scene: Scene) -> Seen:
    corpus = scene.bench.folder / "cut_corpus"
    shutil.rmtree(corpus, ignore_errors=True)
    shutil.copytree(scene.bench.folder / "corpus", corpus)
    file = corpus / "topics.parquet"
    content = file.read_bytes()
    options = scene.long(*LITTLE_AHEAD, "--data.source", str(corpus))
    job = scene.start(*options)
    scene.reached(job, 4)
    since = job.seconds()
    with file.open("r+b") as opened:
        opened.truncate(1000)
    seen = scene.end(job, since)
    file.write_bytes(content)
    seen.afterwards = scene.goes_on(*options)
    return seen


def http_source(fault: str) -> Callable[[Scene], Seen]:
    """The server of the data fails in this way from step 4 on, until the command is started again."""

    def play(scene: Scene) -> Seen:
        cache = {"NORMLAB_FOOTERS_DIR": str(scene.bench.folder / "footers")}
        with serving() as server:
            server.files["/topics.parquet"] = (scene.bench.folder / "corpus" / "topics.parquet").read_bytes()
            options = scene.long(*LITTLE_AHEAD, "--data.source", f"{server.url}/topics.parquet")
            job = scene.start(*options, environment=cache)
            scene.reached(job, 4)
            since = job.seconds()
            server.fault = fault
            seen = scene.end(job, since)
            server.fault = ""
            seen.afterwards = scene.goes_on(*options, environment=cache)
        return seen

    return play


FAULTS = (
    Fault("data truncated", 30, (1,), "failed", FILE, "exact", data_truncated),
    Fault("HTTP source hanging", 30, (1,), "failed", SERVER, "exact", http_source("hang")),
    Fault("HTTP source trickling", 30, (1,), "failed", SERVER, "exact", http_source("trickle")),
)  # fmt: skip
