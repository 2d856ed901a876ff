"""How ranks find each other, and what they decide together."""

import socket

import pytest

from tests.distributed import run_on_ranks
from training.engine import ranks as module
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


def test_a_rank_goes_on_as_soon_as_rank_0_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 30:
                server.listen()

        monkeypatch.setattr(module.time, "sleep", sleep)
        module._wait_for_rank_0()
    assert len(waits) == 30 and max(waits) <= 0.1


def test_a_place_that_cannot_be_reached_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(place: tuple[str, int], timeout: float) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(module.socket, "create_connection", unreachable)
    monkeypatch.setattr(module.time, "sleep", pytest.fail)
    module._wait_for_rank_0()
