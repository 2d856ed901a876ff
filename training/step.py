"""One optimizer step on one global batch: forward, backward, accumulation, and what all ranks make of it."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch

from data import document_ids, inputs_and_targets
from model import IGNORED_TARGET

from .engine.build import gradient_norm, set_learning_rate
from .feed import Feed
from .timing.mark import Mark, on_device
from .watch.stop import Stopped, StopRequest


class StepResult(NamedTuple):
    """A step as all ranks see it, but for the cursors, which are this rank's."""

    loss: float
    """Nats per token over the global batch."""
    tokens: int
    """Targets of the global batch."""
    applied: bool
    """Whether the weights moved: DeepSpeed skips a step whose gradients are not finite."""
    grad_norm: float
    """Global L2 norm of the averaged gradients before clipping; not finite where the step was skipped."""
    seconds: float
    """What the step took on this rank."""
    data_wait: float
    """Seconds that the rank which waited longest for data waited."""
    stop: bool
    """Whether a rank was asked to stop, or its data ended."""
    cursors: dict[int, Sequence[int]]
    """Where the lanes of this rank go on, by lane."""
    bad_documents: dict[str, int]
    """Documents left out since the run began, by reason."""

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradients are finite. The loss of any micro-batch on any rank is in `loss`."""
        return self.applied and math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def begin_step(engine: Any, step: int, rate: float) -> None:
    """Give the optimizer its learning rate, and the model's designs the step, which is about to be taken.

    Both follow from the step, so that a resumed run goes on as the uninterrupted one.
    """
    set_learning_rate(engine, rate)
    engine.module.set_training_step(step)


def train_step(
    engine: Any,
    feed: Feed,
    *,
    device: torch.device,
    eot: int,
    document_mask: bool,
    fetch_next: bool,
    stop: StopRequest,
    phase: Callable[[Any], AbstractContextManager[None]],
) -> StepResult:
    """Train on the global batch that `feed` has fetched. All ranks call it.

    Args:
        engine: DeepSpeed's, after `begin_step`.
        feed: this rank's micro-batches, each (B, T + 1).
        device: this rank's.
        eot: the token that ends a document.
        document_mask: whether attention stays within a document.
        fetch_next: whether another step follows; its batch is fetched while this one is computed.
        stop: of this rank.
        phase: times what happens inside as `forward`, `backward`, `optimizer` or `data`.

    Raises Stopped on all ranks where one was asked to stop between two micro-batches: as if the step had not
    begun, but for the gradients, which nothing saves.
    """
    started = time.perf_counter()
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss in nats, targets
    cursors: dict[int, Sequence[int]] = {}
    micro_batches = feed.take()
    with stop.phase("step"), _undone_where_stopped(engine, device):
        for number, (tokens, moved) in enumerate(micro_batches, start=1):
            if number > 1:  # before the first one they have agreed at the end of the last step
                stop.check()
            tokens = on_device(tokens, device).long()  # (B, T + 1)
            inputs, targets = inputs_and_targets(tokens, eot)
            documents = document_ids(inputs, eot) if document_mask else None
            with phase("forward"):
                _, loss = engine(inputs, targets, documents=documents)
            # DeepSpeed averages the losses of micro-batches and ranks. Scaled by its share of live targets,
            # every target of the global batch has the same weight, wherever ignored ones lie.
            live = (targets != IGNORED_TARGET).sum()
            loss = loss * (live / targets.numel())
            with phase("backward"):
                engine.backward(loss)
            sums += torch.stack([loss.detach().double() * targets.numel(), live])
            cursors.update(moved)
            if number < len(micro_batches):
                engine.step()  # which counts the micro-batch
    # Up to here a GPU is only told what to compute. While it computes, the host gets the next batch, and what
    # the ranks tell each other is on its way: the loss, the counts, and whether anybody wants to stop.
    if fetch_next:
        computed = Mark(device)
        with phase("data"), stop.phase("data"):
            feed.fetch(computed)
    with stop.phase("step"):
        gathered = feed.gather(sums, stop.asked())
        # The only wait: DeepSpeed reads the gradients' norm, and then tells the GPU how to move the weights.
        with phase("optimizer"):
            engine.step()
        ranks = gathered.read()
    return StepResult(
        loss=ranks.loss,
        tokens=ranks.tokens,
        applied=engine.was_step_applied(),
        grad_norm=gradient_norm(engine),
        seconds=time.perf_counter() - started,
        data_wait=ranks.data_wait,
        stop=ranks.stop,
        cursors=cursors,
        bad_documents=ranks.bad_documents,
    )


@contextmanager
def _undone_where_stopped(engine: Any, device: torch.device) -> Iterator[None]:
    """Where Stopped is raised inside, random numbers and buffers are again what they were before.

    A checkpoint holds them, and the run that goes on from it makes the whole step.
    """
    generator = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    cpu_generator = torch.get_rng_state()
    buffers = [(buffer, buffer.clone()) for buffer in engine.module.buffers()]
    try:
        yield
    except Stopped:
        torch.set_rng_state(cpu_generator)
        if generator is not None:
            torch.cuda.set_rng_state(generator, device)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        raise
