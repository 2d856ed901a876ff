"""What a step does before it waits, seen by an engine, a feed and a stop that write down their calls."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from training.feed import OfAllRanks
from training.step import train_step


class Recorded:
    """The engine, the feed and the stop request of a step, in one list of calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.module = nn.Linear(1, 1)

    # The engine.
    def __call__(self, *_: Any, **__: Any) -> tuple[None, torch.Tensor]:
        self.calls.append("forward")
        return None, torch.tensor(2.0)

    def backward(self, loss: torch.Tensor) -> None:
        self.calls.append("backward")

    def step(self) -> None:
        self.calls.append("step")

    def was_step_applied(self) -> bool:
        return True

    def get_global_grad_norm(self) -> float:
        return 1.0

    # The feed, and what it gathers.
    def take(self) -> list[Any]:
        return [(torch.ones(2, 5, dtype=torch.int32), {0: number}) for number in range(2)]

    def fetch(self, computed: Any) -> None:
        self.calls.append("fetch")

    def gather(self, sums: torch.Tensor, stop: bool) -> "Recorded":
        self.calls.append("gather")
        self.sums = sums.tolist()
        return self

    def read(self) -> OfAllRanks:
        self.calls.append("read")
        return OfAllRanks(2.0, 16, 0.0, False, {})

    # The stop request.
    def phase(self, name: str) -> Any:
        return nullcontext()

    def check(self) -> None:
        self.calls.append("check")

    def asked(self) -> bool:
        return False


def calls_of(fetch_next: bool) -> Recorded:
    recorded: Any = Recorded()
    result = train_step(
        recorded,
        recorded,
        device=torch.device("cpu"),
        eot=0,
        document_mask=False,
        fetch_next=fetch_next,
        stop=recorded,
        phase=lambda _: nullcontext(),
    )
    assert result.tokens == 16 and result.cursors == {0: 1}
    assert recorded.sums == [32.0, 16.0]
    return recorded


MICRO_BATCHES = ["forward", "backward", "step", "check", "forward", "backward"]


def test_all_that_needs_no_gpu_comes_before_the_norm_is_waited_for() -> None:
    """DeepSpeed's last step waits for it: by then the loss has come, and is logged while the weights move."""
    assert calls_of(fetch_next=True).calls == [*MICRO_BATCHES, "fetch", "gather", "step", "read"]


def test_after_the_last_step_no_batch_is_fetched() -> None:
    assert calls_of(fetch_next=False).calls == [*MICRO_BATCHES, "gather", "step", "read"]
