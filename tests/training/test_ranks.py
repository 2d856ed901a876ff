"""How ranks find each other, and what they decide together."""

import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta

import pytest

from model.errors import LauncherError, UserError
from tests.distributed import free_port, run_on_ranks
from training.engine import meeting
from training.engine.environment import Launch
from training.engine.meeting import meet
from training.engine.ranks import join_ranks


def decide(rank: int) -> None:
    ranks = join_ranks()
    assert (ranks.rank, ranks.world_size, ranks.device.type) == (rank, 2, "cpu")
    assert not ranks.any(False)
    assert ranks.any(rank == 0) and ranks.any(rank == 1)
    assert ranks.broadcast(f"said by rank {rank}") == "said by rank 0"
    assert ranks.broadcast(None if rank == 0 else "rank 1 alone") is None


def test_one_ranks_wish_is_everyones_and_rank_0_speaks() -> None:
    run_on_ranks(decide, 2)


SECOND = timedelta(seconds=1)


def of(rank: int, world_size: int, port: int) -> Launch:
    return Launch(rank, rank, world_size, "127.0.0.1", port, world_size)


def test_a_rank_goes_on_as_soon_as_rank_0_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 30:
                server.listen()

        monkeypatch.setattr(meeting.time, "sleep", sleep)
        launch = of(1, 2, server.getsockname()[1])
        meeting._wait_for_rank_0(launch, SECOND, time.monotonic() + 60, pytest.fail)
    assert len(waits) == 30 and max(waits) <= 0.1


def test_a_rank_0_that_never_listens_is_named_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "SAY_AFTER_S", 0.1)
    said: list[str] = []
    port = free_port()
    with pytest.raises(LauncherError) as caught:
        meet(of(1, 2, port), "run", timedelta(seconds=0.3), said.append)
    assert said == [f"rank 1 waits for rank 0 at 127.0.0.1:{port}"]
    sentence = str(caught.value)
    assert sentence.startswith(f"rank 1 found no rank 0 at 127.0.0.1:{port} within 0.3 s: ")
    assert "`unset RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT`" in sentence


def test_why_a_place_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(place: tuple[str, int], timeout: float) -> socket.socket:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(meeting.socket, "create_connection", unreachable)
    launch = Launch(1, 0, 2, "nodeO", 29500, 1)
    with pytest.raises(LauncherError, match=r"at nodeO:29500 \(.*Name or service not known\) within"):
        meet(launch, "run", timedelta(seconds=0.1), pytest.fail)


def test_rank_0_says_which_ranks_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 of another run comes to the same place, and is not taken for one of this."""
    monkeypatch.setattr(meeting, "SAY_AFTER_S", 0.5)
    said: list[str] = []
    port = free_port()
    stranger = threading.Thread(target=_come, args=(of(1, 4, port), "another run"), daemon=True)
    stranger.start()
    comrade = threading.Thread(target=_come, args=(of(3, 4, port), "run"), daemon=True)
    comrade.start()
    with pytest.raises(LauncherError) as caught:
        meet(of(0, 4, port), "run", timedelta(seconds=1.5), said.append)
    assert said == [f"waiting for ranks 1, 2 of 4 at 127.0.0.1:{port}"]
    assert str(caught.value).startswith(f"ranks 1, 2 of 4 did not come to 127.0.0.1:{port} within 1.5 s: ")
    stranger.join()
    comrade.join()


def _come(launch: Launch, run: str) -> None:
    with suppress(UserError, OSError):
        meet(launch, run, timedelta(seconds=1.5), lambda sentence: None)


def test_a_port_that_is_taken_names_the_launchers_option() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LauncherError, match=f"port {port} is taken.*deepspeed --master_port {port + 1} "):
            meet(of(0, 2, port), "run", SECOND, pytest.fail)
