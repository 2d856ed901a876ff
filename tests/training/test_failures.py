"""The cause of death: of several ranks that fail, the first one is named, whichever writes last."""

import json
import multiprocessing
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import training.watch.failures as failures
from training.run.folder import RunFolder
from training.watch.failures import failures_recorded, is_lost_connection

SPAWN = multiprocessing.get_context("spawn")
LOST = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:39021"
)


class Console:
    """Whether a rank's terminal names its crash."""

    names_crash = True


def claimed(folder: Path, rank: int) -> RunFolder:
    """A rank's run folder as a start of it finds it."""
    run = RunFolder(folder, rank)
    run.claim()
    return run


def fail(run: RunFolder, error: Exception, world_size: int = 2) -> Exception:
    """A rank ends with an exception; returns it as it went on.

    Its terminal names it, unless it has a note that another rank is the cause.
    """
    console = Console()
    with pytest.raises(type(error)) as caught, failures_recorded(run, world_size, console):
        raise error
    assert console.names_crash == (not getattr(error, "__notes__", []))
    return caught.value


def end(runs: list[RunFolder]) -> None:
    """The processes of a start are gone, and their locks with them."""
    for run in runs:
        run._lock.release()


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that fail here one after the other do not wait for a later one."""
    monkeypatch.setattr(failures, "CAUSE_WITHIN_S", 0.0)


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture
def ranks(tmp_path: Path) -> list[RunFolder]:
    """Two ranks of a run that is under way."""
    runs = [claimed(tmp_path, rank) for rank in (0, 1)]
    runs[0].update_summary(status="running", variant="vanilla", step=7)
    return runs


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_cause_is_named_whichever_rank_writes_first(ranks: list[RunFolder], order: Any) -> None:
    errors = {0: RuntimeError(LOST), 1: ZeroDivisionError("division by zero\nand more lines")}
    for rank in order:
        fail(ranks[rank], errors[rank])
    assert summary_of(ranks[0].path) == {
        "status": "failed",
        "variant": "vanilla",
        "step": 7,
        "error": "ZeroDivisionError: division by zero",
        "failed_rank": 1,
        "log": "logs/rank1.log",
    }


def test_of_two_causes_the_earlier_is_named(ranks: list[RunFolder]) -> None:
    fail(ranks[1], ValueError("first"))
    fail(ranks[0], ValueError("second"))
    assert summary_of(ranks[0].path)["error"] == "ValueError: first"


def test_a_survivors_exception_gets_a_note_that_names_the_cause(ranks: list[RunFolder]) -> None:
    cause = fail(ranks[1], ZeroDivisionError("division by zero"))
    survivor = fail(ranks[0], RuntimeError(LOST))
    assert not hasattr(cause, "__notes__")
    log = ranks[0].path / "logs" / "rank1.log"
    said = f"rank 1 failed first: ZeroDivisionError: division by zero (see {log})"
    assert survivor.__notes__ == [said]


def test_a_rank_that_was_killed_is_named_by_its_survivors(tmp_path: Path) -> None:
    runs = [claimed(tmp_path, rank) for rank in range(3)]
    fail(runs[2], RuntimeError(LOST), world_size=3)
    fail(runs[0], RuntimeError(LOST), world_size=3)
    summary = summary_of(tmp_path)
    assert (
        summary["error"] == f"RuntimeError: {LOST} (rank 1 ended without an error of its own: was it killed?)"
    )
    assert summary["failed_rank"] == 2


def test_a_ranks_first_failure_stays(ranks: list[RunFolder]) -> None:
    fail(ranks[0], ValueError("first"))
    fail(ranks[0], ValueError("on the way out"))
    assert summary_of(ranks[0].path)["error"] == "ValueError: first"


def test_an_earlier_start_is_not_named_by_a_later_one(ranks: list[RunFolder]) -> None:
    folder = ranks[0].path
    fail(ranks[1], ValueError("of the first start"))
    end(ranks)
    runs = [claimed(folder, rank) for rank in (0, 1)]
    runs[0].update_summary(status="running")
    assert summary_of(folder) == {"status": "running", "variant": "vanilla", "step": 7}
    fail(runs[0], RuntimeError(LOST))
    assert summary_of(folder)["error"].startswith(f"RuntimeError: {LOST} (rank 1 ended without")


def test_an_earlier_start_on_more_ranks_is_not_named(ranks: list[RunFolder]) -> None:
    folder = ranks[0].path
    fail(ranks[1], ValueError("of the first start"))
    end(ranks)
    fail(claimed(folder, 0), KeyError("now"), world_size=1)
    assert summary_of(folder)["error"] == "KeyError: 'now'"


def test_a_failure_that_cannot_be_written_goes_on_as_it_is(ranks: list[RunFolder]) -> None:
    with pytest.raises(ValueError, match="the true one"), failures_recorded(ranks[0], 2, Console()):
        shutil.rmtree(ranks[0].path / "logs")
        (ranks[0].path / "logs").touch()
        raise ValueError("the true one")


def test_what_ends_well_leaves_nothing(ranks: list[RunFolder]) -> None:
    with failures_recorded(ranks[0], 2, Console()):
        pass
    assert summary_of(ranks[0].path)["status"] == "running"
    assert not list(ranks[0].path.glob("logs/failure*"))


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(LOST), True),
        (RuntimeError("Connection reset by peer"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (ConnectionResetError("Connection reset by peer"), False),  # of the data's server
        (OSError("Connection closed by peer"), False),
        (ValueError("a document about gloo"), False),
    ],
)
def test_a_lost_connection_is_torchs_own(error: Exception, lost: bool) -> None:
    assert is_lost_connection(error) == lost


def test_what_is_raised_from_a_lost_connection_is_one() -> None:
    try:
        try:
            raise RuntimeError(LOST)
        except RuntimeError as error:
            raise TypeError("while saving") from error
    except TypeError as error:
        assert is_lost_connection(error)


def start(target: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """Run `target(rank, world_size, *arguments)` in a process per rank, to the end."""
    processes = [
        SPAWN.Process(target=target, args=(rank, world_size, *arguments)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def fail_together(rank: int, world_size: int, folder: Path, together: Any) -> None:
    """Rank 2 has the cause, and all write at once."""
    run = claimed(folder, rank)
    if rank == 0:
        run.update_summary(status="running", variant="vanilla")
    together.wait()
    with failures_recorded(run, world_size, Console()):
        raise KeyError("the cause") if rank == 2 else RuntimeError(LOST)


def test_ranks_that_fail_at_once_agree_on_the_cause(tmp_path: Path) -> None:
    for folder in (tmp_path / "first", tmp_path / "second"):
        start(fail_together, 4, folder, SPAWN.Barrier(4))
        summary = summary_of(folder)
        assert (summary["error"], summary["failed_rank"]) == ("KeyError: 'the cause'", 2)
        assert summary["variant"] == "vanilla"


def fail_over_gloo(rank: int, world_size: int, folder: Path) -> None:
    """Rank 1 fails between two collectives; rank 0 loses it in the second."""
    import torch
    import torch.distributed as dist

    run = claimed(folder, rank)
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    with failures_recorded(run, world_size, Console()):
        dist.barrier()
        if rank == 1:
            raise ValueError("the cause")
        dist.all_reduce(torch.ones(1))


def test_a_real_lost_connection_is_told_from_its_cause(tmp_path: Path) -> None:
    start(fail_over_gloo, 2, tmp_path)
    survivor = json.loads((tmp_path / "logs" / "failure_rank0.json").read_text())
    assert survivor["lost_connection"], survivor
    summary = summary_of(tmp_path)
    assert (summary["error"], summary["failed_rank"]) == ("ValueError: the cause", 1)
