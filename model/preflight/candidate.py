"""The design under test at a small width, and the ways in which the checks run it."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from ..config import GPTConfig
from ..designs import Designs, find_designs
from ..gpt import GPT
from ..topologies import State, takes_state
from ..training_step import TrainingStep
from ..treatment import Treatment

SEED = 1234
HEAD_SIZE = 16
STEADY_STEP = 10**7
"""The training step of the checks: what warms up over a run has long arrived."""
FIRST_STEPS = (0, 1, 1000)
"""Training steps at which a design that reads them is looked at too."""
Weights = Literal["initial", "random"]
Caution = Literal["none", "positive", "near"]
CAUTION: tuple[Caution, ...] = ("none", "positive", "near")


@dataclass
class Candidate:
    """A design, and what the checks have found out about it.

    Attributes:
        config: the target's shape.
        small: the same depth, block size and design at a small width, without dropout.
        exact: the precision of the exact comparisons: float64 where the design runs in it.
        treatment: what a run does with the design's buffers and parameters, which `probe` finds out.
        stochastic: whether two seeds give two outputs in train mode.
        apart: whether the sequences of a batch do not touch.
        alone: whether each block runs without the topology.
    """

    config: GPTConfig
    small: GPTConfig
    designs: Designs
    numbers: dict[str, Any]
    thorough: bool
    exact: torch.dtype = torch.float64
    treatment: Treatment = field(default_factory=Treatment)
    stochastic: bool = False
    apart: bool = True
    alone: bool = True
    _models: dict[Any, GPT] = field(default_factory=dict)

    @classmethod
    def of(cls, config: GPTConfig, numbers: dict[str, Any], thorough: bool) -> "Candidate":
        """Raises UserError for a design that does not exist or lacks an option."""
        n_head = min(config.n_head, 4)
        small = replace(
            config,
            n_head=n_head,
            n_embd=n_head * HEAD_SIZE,
            vocab_size=min(config.vocab_size, 257),
            dropout=0.0,
        )
        return cls(config, small, find_designs(config), numbers, thorough)

    def build(self, seed: int = SEED, **changes: Any) -> GPT:
        """A new small model in fp32 with its initial weights, at `STEADY_STEP`, which has not run yet.

        What a design makes in its first forward belongs to that call's device and precision: a check that
        wants others builds anew.
        """
        seed_all(seed)
        model = GPT(replace(self.small, **changes))
        model.set_training_step(STEADY_STEP)
        model.treat(replace(self.treatment, unused=(), sometimes=()))
        return model

    def treat(self, treatment: Treatment) -> None:
        """Have every later model treated so."""
        if treatment.buffers != self.treatment.buffers:
            self._models.clear()
        self.treatment = treatment

    def model(self, weights: Weights = "random", dtype: torch.dtype | None = None, **changes: Any) -> GPT:
        """A small model in eval mode, the same one for the same arguments."""
        key = (weights, dtype or self.exact, tuple(sorted(changes.items())))
        if key not in self._models:
            model = self.build(**changes)
            self._models[key] = model.to(key[1])
            if weights == "random":
                self.randomise(model)
        return self._models[key].eval()

    def randomise(self, model: GPT) -> None:
        """Draw weights anew, more cautiously where a design puts out infinities with them."""
        initial = [parameter.detach().clone() for parameter in model.parameters()]
        for caution in CAUTION:
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), initial, strict=True):
                    parameter.copy_(value)
                redraw(model, caution=caution)
                if logits(model.eval(), self.tokens(1, self.length(40))).isfinite().all():
                    return

    def tokens(self, batch: int, length: int, seed: int = SEED) -> torch.Tensor:
        """Random token ids (batch, length)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.small.vocab_size, (batch, length), generator=generator)

    def stream(
        self, batch: int, length: int, width: int = 0, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """A random residual stream (batch, length, width)."""
        generator = torch.Generator().manual_seed(SEED + length)
        shape = (batch, length, width or self.small.n_embd)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype or self.exact)

    def reads_step(self) -> bool:
        """Whether a forward of the design reads the training step."""
        found: list[nn.Module] = []

        def look(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(module, TrainingStep):
                found.append(module)

        handle = nn.modules.module.register_module_forward_hook(look)
        try:
            with torch.no_grad():
                hidden(self.model(), self.tokens(1, self.length(8)))
        finally:
            handle.remove()
        return bool(found)

    def length(self, wanted: int) -> int:
        """A length in tokens, at most the block size."""
        return min(wanted, self.small.block_size)


def seed_all(seed: int = SEED) -> None:
    """What a stochastic design draws from on the CPU: torch.manual_seed takes 3 ms to reach other devices."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread: the models are small, and threads that wait for each other on a busy machine take ten times
    as long. The caller's threads and random numbers go on afterwards as before."""
    state, threads = random.getstate(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(state)


def redraw(module: nn.Module, seed: int = SEED, caution: Caution = "none") -> None:
    """Draw every parameter anew, so that no gate stays closed: matrices from normal(0, 1 / sqrt(columns)),
    vectors and scalars from normal(0, 1) away from 0.

    Args:
        caution: `positive` takes the draws' sizes; `near` adds a tenth of them to what is there.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim >= 2:
                drawn /= parameter.shape[-1] ** 0.5
            else:
                drawn += 0.25 * drawn.sign()
            if caution == "near":
                drawn = parameter + 0.1 * drawn
            parameter.copy_(drawn.abs() if caution == "positive" else drawn)


def logits(model: GPT, idx: torch.Tensor, seed: int = SEED, **given: Any) -> torch.Tensor:
    """(B, T) ids -> (B, T, vocab_size), with the same random numbers each time."""
    seed_all(seed)
    found, _ = model(idx, **given)
    assert found is not None
    return found


def hidden(model: GPT, idx: torch.Tensor, seed: int = SEED) -> torch.Tensor:
    """(B, T) ids -> (B, T, C), what the head reads."""
    seed_all(seed)
    return model.hidden(idx)


def each_layer(blocks: Sequence[nn.Module], x: torch.Tensor) -> list[torch.Tensor]:
    """Every block alone on the stream x (B, T, C); those that take a state share one, new each time."""
    seed_all()
    state = state_for(x)
    return [one_layer(block, x, state) for block in blocks]


def state_for(x: torch.Tensor) -> State:
    """A new state for blocks alone on the stream x (B, T, C): its tokens are all 0."""
    return {"idx": torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)}


def one_layer(block: nn.Module, x: torch.Tensor, state: State) -> torch.Tensor:
    """One block on a copy of x (B, T, C)."""
    return block(x.clone(), state) if takes_state(block) else block(x.clone())


@contextmanager
def at_step(model: GPT, step: int) -> Iterator[None]:
    """The model is at another training step."""
    before = model.training_step
    model.set_training_step(step)
    try:
        yield
    finally:
        model.set_training_step(before)


@contextmanager
def embeddings(model: GPT, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Token embeddings (B, T, C) are `change`d in every forward."""
    handle = model.transformer["wte"].register_forward_hook(lambda module, args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Elementwise a == b, with NaN equal to NaN."""
    return (a == b) | ((a != a) & (b != b))


def difference(a: torch.Tensor, b: torch.Tensor) -> str:
    """The size of the largest difference, for a sentence; empty where all bits are the same."""
    return "" if same(a, b).all() else f"{largest(a - b):.2g}"


def largest(x: torch.Tensor) -> float:
    """The largest |x|, as a float."""
    return float(x.detach().abs().max()) if x.numel() else 0.0
