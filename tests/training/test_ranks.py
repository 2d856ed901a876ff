"""What ranks decide together."""

from tests.distributed import run_on_ranks
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
