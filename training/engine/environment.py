"""What the launcher says about this process: how many ranks there are, and which of them it is."""

import os


def world_size_from_environment() -> int:
    """How many ranks the launcher started; 1 under plain `python`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_from_environment() -> int:
    """This process's number among the ranks; 0 under plain `python`."""
    return int(os.environ.get("RANK", "0"))
