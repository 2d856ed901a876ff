"""W&B that fails or hangs, at the start, in the loop, at the end: the run goes on, and ends as it would."""

import atexit
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from model.files import write_json
from tests.eval.tracked_runs import SUMMARY
from tests.processes import ENVIRONMENT, Forked, fork
from tests.training.wandb_runs import records, rows
from tests.training.wandb_server import FAULTS, stop_service, wandb_server
from training.evaluations import unsent
from training.tracking import thread
from training.tracking.tracker import Tracker, TrackingConfig

pytestmark = pytest.mark.xdist_group("wandb faults")  # its processes run once, and for the most part wait
STATUS = 75
"""What the process means to end with, which W&B must not change."""
STEPS = 100
WAITING = 300
"""How much may wait in these runs."""
BOUND_S = 150
"""Far above what a start and an end have together, on a machine that does much else."""
OF_SERVICE = ("stopped", "ended by a signal")
"""The server is well, and wandb-core is stopped; in the second the process gets SIGTERM while it waits."""


def tracked(folder: Path, case: str) -> int:
    """A run of some steps; `facts.json` has what was said and noted of it."""
    thread.QUEUED = WAITING
    said: list[str] = []
    tracker = Tracker(TrackingConfig(), folder / "run", None, {}, said.append)
    write_json(folder / "run" / "summary.json", SUMMARY | {"status": "running"})
    facts: dict[str, Any] = {"said": said, "first_id": tracker.id}
    log_steps(tracker, 1, STEPS)
    facts["began_before_logs_returned"] = tracker._thread._begun_at is not None
    if case in OF_SERVICE:
        while tracker._thread._begun_at is None:
            time.sleep(0.05)
        facts["service"] = stop_service(os.getpid())
        results = {"results": {"arc": {"acc,none": 0.25}}, "n-samples": {}, "normlab": {}}
        write_json(folder / "run/eval/step_00000002/results.json", results)
        tracker.log("val", STEPS, {"loss": 3.0})
        log_steps(tracker, STEPS + 1, 100 * STEPS)  # much more than a socket takes
    # As in training: a signal asks for the end, and does not make it.
    signal.signal(signal.SIGTERM, lambda signum, frame: None)
    write_json(folder / "run" / "summary.json", SUMMARY | {"wandb": tracker.noted})
    tracker.finish(SUMMARY, STATUS)
    atexit.register(lambda: write_json(folder / "facts.json", facts | {"noted": tracker.noted}))
    (folder / "ends").touch()
    return STATUS


def log_steps(tracker: Tracker, first: int, last: int) -> None:
    for step in range(first, last + 1):
        tracker.log("train", step, {"loss": 1.0, "text": "x" * 50}, {"tokens": 64 * step})


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, Path]]]:
    """By fault, the exit status and the folder of a process; all have run at once."""
    with ExitStack() as stack:
        running: dict[str, tuple[Forked, Path]] = {}
        printed = stack.enter_context(tempfile.TemporaryFile())
        for case in ("none", *FAULTS, *OF_SERVICE):
            folder = tmp_path_factory.mktemp(case.replace(" ", "_"))
            (folder / "run").mkdir()
            address, _ = stack.enter_context(wandb_server(case if case in FAULTS else None))
            account = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0123456789" * 4, "WANDB_MODE": "online"}
            environment = ENVIRONMENT | account | {"HOME": str(folder), "NETRC": str(folder / "netrc")}
            process = fork(tracked, folder, case, stdout=printed, stderr=printed, environment=environment)
            stack.callback(process.kill)
            running[case] = process, folder
        process, folder = running["ended by a signal"]
        give_up = time.monotonic() + BOUND_S
        # Until the wait is over: what comes later meets an interpreter without handlers.
        while not (folder / "facts.json").exists() and time.monotonic() < give_up:
            if (folder / "ends").exists():
                os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.2)
        yield {case: (process.wait(BOUND_S), folder) for case, (process, folder) in running.items()}


def facts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "facts.json").read_text())


@pytest.mark.parametrize("case", ["none", *FAULTS, *OF_SERVICE])
def test_the_process_ends_with_its_own_status(ends: dict[str, tuple[int, Path]], case: str) -> None:
    status, folder = ends[case]
    assert status == STATUS
    assert (facts_of(folder)["said"] == []) == (case == "none")


@pytest.mark.parametrize("case", ["silent", "hang_at_start"])
def test_logs_return_while_the_server_hangs(ends: dict[str, tuple[int, Path]], case: str) -> None:
    assert facts_of(ends[case][1])["began_before_logs_returned"] is False


@pytest.mark.parametrize("case", ["refuse", "silent"])
def test_without_a_server_the_run_is_offline_and_whole(ends: dict[str, tuple[int, Path]], case: str) -> None:
    folder = ends[case][1]
    facts = facts_of(folder)
    (sentence,) = facts["said"]
    assert sentence.startswith("W&B: offline run (http://127.0.0.1:") and "cannot be reached" in sentence
    assert facts["noted"]["id"] == facts["first_id"] and "instead_of" not in facts["noted"]
    (part,) = folder.glob(f"run/wandb/offline-run-*-{facts['first_id']}")
    assert list(rows(records(part))) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("case", ["hang_at_start", "error_500", "conflict_409"])
def test_a_run_made_in_part_goes_on_offline_under_a_free_id(
    ends: dict[str, tuple[int, Path]], case: str
) -> None:
    folder = ends[case][1]
    facts = facts_of(folder)
    (sentence,) = facts["said"]
    run_id = facts["noted"]["id"]
    assert sentence.startswith("W&B: offline run (") and sentence.endswith(f"/offline-run-*-{run_id}*")
    assert run_id != facts["first_id"] == facts["noted"]["instead_of"]
    (part,) = folder.glob(f"run/wandb/offline-run-*-{run_id}")
    assert list(rows(records(part))) == list(range(1, STEPS + 1))


def test_an_end_that_hangs_is_left_behind_and_named(ends: dict[str, tuple[int, Path]]) -> None:
    facts = facts_of(ends["hang_after_start"][1])
    reason = "TimeoutError: it did not end within 30 s"
    assert facts["said"] == [f"W&B is lost ({reason}): the run folder has it all"]
    assert facts["noted"]["lost"] == reason and facts["noted"]["id"] == facts["first_id"]


def test_what_a_stopped_service_does_not_take_is_counted_once(ends: dict[str, tuple[int, Path]]) -> None:
    folder = ends["stopped"][1]
    facts = facts_of(folder)
    full, lacks, lost = facts["said"]
    dropped = facts["noted"]["dropped_rows"]
    assert full.startswith("W&B takes nothing, and 300 rows wait for it") and 0 < dropped < 100 * STEPS
    assert lacks == f"W&B lacks {dropped:,} rows that came while it took none: metrics.jsonl has them"
    assert lost.startswith("W&B is lost (")  # by W&B's own deadline, or at the end by ours
    written = json.loads((folder / "run" / "summary.json").read_text())
    assert written["wandb"]["dropped_rows"] == dropped
    assert not psutil.pid_exists(facts["service"])


def test_evaluations_that_a_lost_run_took_are_sent_again(ends: dict[str, tuple[int, Path]]) -> None:
    folder = ends["stopped"][1]
    found = list(unsent(folder / "run", facts_of(folder)["first_id"], {}))
    assert found == [(2, {"eval/arc/acc": 0.25})]


def test_a_signal_ends_the_wait_at_once(ends: dict[str, tuple[int, Path]]) -> None:
    facts = facts_of(ends["ended by a signal"][1])
    assert facts["noted"]["lost"] == "InterruptedError: a signal ended the wait for it"
    assert not psutil.pid_exists(facts["service"])


def test_a_run_takes_the_id_again_that_its_last_start_fell_back_to(tmp_path: Path) -> None:
    noted = {"id": "fallback", "instead_of": "halfmade"}
    again = Tracker(TrackingConfig(), tmp_path, "halfmade", {}, print, noted)
    assert again.id == "fallback" and again.noted["instead_of"] == "halfmade"
    assert Tracker(TrackingConfig(), tmp_path, "another1", {}, print, noted).id == "another1"


def test_what_is_logged_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = Tracker(TrackingConfig(), tmp_path, None, {}, print)
    taken: list[Any] = []
    monkeypatch.setattr(tracker._thread, "put", taken.append)
    bad = {"empty": 1}
    tracker.log("train", 1, {"bad_documents": bad}, {"tokens": 64})
    bad["empty"] = 2

    class Begun:
        def log(self, kind: str, step: int, row: dict[str, Any]) -> None:
            assert (kind, step, row) == ("train", 1, {"tokens": 64, "train/bad_documents": {"empty": 1}})

    monkeypatch.setattr(tracker, "_begun", Begun)
    taken[0]()
