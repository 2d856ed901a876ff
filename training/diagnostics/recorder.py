"""Diagnostics of a run under way: at a few steps, on one batch that stays the same."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from data import ValidationSet
from model import GPT, GPTConfig

from ..engine.ranks import Ranks
from ..watch.disk import FULL, disk_sentence
from .formulas import norm
from .measure import finite, measure
from .plain_copy import PlainCopy, fp32_weights
from .table import FILE, Row, add_rows, keep_until
from .tracked import log_rows, log_table
from .weights import norm_rows, ratios, rows_of

SEQUENCES = 2
"""How many sequences the batch has, from the beginning of the validation set."""


def activations(config: GPTConfig, tokens: int) -> int:
    """About how many numbers a backward pass over so many tokens keeps.

    17 per feature of a layer, attention's matrices apart (Korthikanti et al. 2022, arXiv:2205.05198), and the
    logits three times.
    """
    return tokens * (17 * config.n_layer * config.n_embd + 3 * config.vocab_size)


Phase = Callable[[Any], AbstractContextManager[None]]


def diagnostic_steps(steps: int) -> set[int]:
    """The powers of two up to a run's steps, and its last."""
    return {2**power for power in range(steps.bit_length())} | {steps}


def fixed_batch(validation: ValidationSet, block_size: int) -> torch.Tensor:
    """The first sequences of the validation set, (B, T + 1) token ids: B of `SEQUENCES` and T of the block
    size where the set is long enough."""
    targets = len(validation.tokens) - 1
    T = min(block_size, targets)
    tokens = torch.from_numpy(validation.tokens.astype("int64"))
    return torch.stack([tokens[i * T : i * T + T + 1] for i in range(min(SEQUENCES, targets // T))])


class Diagnostics:
    """Measures the model at `diagnostic_steps`, beside the engine: training computes the same numbers.

    Every rank has one and makes the same calls. At those steps all ranks bring the fp32 weights together, and
    rank 0 measures a plain copy of the model; at all other steps nothing happens. Where it fails, for want of
    memory perhaps, it says so once, and the run goes on without it.

    Args:
        steps: of the run; 0 for no diagnostics.
        run_dir: where `diagnostics.parquet` is kept.
        ranks: who trains.
        gpt: what is trained, before it is compiled and an engine is built around it.
        say: is told why there are no diagnostics.
    """

    def __init__(self, steps: int, run_dir: Path, ranks: Ranks, gpt: GPT, say: Callable[[str], None]) -> None:
        self._steps = diagnostic_steps(steps) if steps else set()
        self._run_dir, self._ranks, self._say = run_dir, ranks, say
        self._last, self._n_layer = steps, len(gpt.blocks)
        self._failed = False
        self._copy: PlainCopy | None = None
        self._rows: list[Row] = []
        if self._steps and ranks.rank == 0:
            with self._failing(0):
                self._copy = PlainCopy(gpt)

    def begin(self, step: int, batch: torch.Tensor, eot: int | None, phase: Phase) -> None:
        """The run begins, or goes on, after `step`; what was measured later goes, as it is measured again.

        Args:
            step: steps taken.
            batch: of `fixed_batch`.
            eot: the token that ends a document, where attention stays within one.
            phase: times what happens inside.
        """
        self._batch, self._eot, self._phase = batch.to(self._ranks.device), eot, phase
        if self._ranks.rank == 0:
            try:
                keep_until(self._run_dir, step)
            except (OSError, ValueError) as error:  # what pyarrow raises of a damaged file is a ValueError
                if isinstance(error, OSError) and error.errno in FULL:  # it was read, and not written again
                    raise
                self._say(f"{self._run_dir / FILE} cannot be read ({error}): it begins again")
                (self._run_dir / FILE).unlink(missing_ok=True)

    @contextmanager
    def around(self, engine: Any, step: int) -> Iterator[None]:
        """Step number `step`, from 1, is taken inside; it is measured afterwards where it is one of those."""
        if step not in self._steps:
            yield
            return
        before: dict[str, torch.Tensor] = {}
        with self._phase("diagnostics"):
            with self._failing(step):
                self._reserve(engine)
            if self._all_can(step):
                self._gather(engine, step, lambda name, weight: before.update({name: weight.cpu()}))
        yield
        with self._phase("diagnostics"):
            if step in self._steps and self._all_can(step):
                self._measure(engine, step, before)

    def write(self, tracker: Any, step: int, axes: Mapping[str, float]) -> None:
        """Write and log what was measured of the step that is over; nothing at most steps.

        Args:
            tracker: the run's, of rank 0.
            step: its number.
            axes: what W&B can draw it against, `tokens` among them.
        """
        rows, self._rows = self._rows, []
        with self._failing(step):
            if rows:
                add_rows(self._run_dir, step, int(axes["tokens"]), rows)
                log_rows(tracker, step, rows, self._n_layer, axes)
                if step == self._last:
                    log_table(tracker, step, self._run_dir)

    def _measure(self, engine: Any, step: int, before: dict[str, torch.Tensor]) -> None:
        sizes: dict[str, float] = {}
        updates: dict[str, float] = {}
        plain = self._copy

        def take(name: str, weight: torch.Tensor) -> None:
            old = before.pop(name).to(weight.device)
            sizes[name], updates[name] = norm(old), norm(weight - old)
            if plain:
                plain.fill(name, weight)

        self._gather(engine, step, take)
        if plain is None:
            return
        with self._failing(step), torch.random.fork_rng(self._generators()):
            if not self._failed:
                self._rows = self._rows_of(plain, engine, step, sizes, updates)
        plain.empty()

    def _rows_of(
        self, plain: PlainCopy, engine: Any, step: int, sizes: dict[str, float], updates: dict[str, float]
    ) -> list[Row]:
        """The copy has the step's weights; `sizes` are their norms before it, `updates` how far they went."""
        plain.take_buffers(engine.module)
        plain.gpt.set_training_step(step)
        rows = measure(plain.gpt, self._batch, self._eot)
        rows += norm_rows("weight_norm", dict(plain.gpt.named_parameters()), self._n_layer)
        moved, whole = (rows_of("update_ratio", norms, self._n_layer) for norms in (updates, sizes))
        return finite(rows + ratios(moved, whole))

    def _gather(self, engine: Any, step: int, take: Callable[[str, torch.Tensor], object]) -> None:
        """Bring the fp32 weights together, each of which rank 0 takes. All ranks call it, and rank 0 goes
        through to the end of it whatever happens there: the others wait for it."""
        with self._failing(step):
            for name, weight in fp32_weights(engine):
                with self._failing(step):
                    if self._copy and not self._failed:
                        take(name, weight)

    def _all_can(self, step: int) -> bool:
        """Whether no rank has failed; where one has, there are no more diagnostics. All ranks call it."""
        failed = self._ranks.any(self._failed)
        if failed:
            self._fail(step, RuntimeError("another rank failed"))
            self._steps = set()
        return not failed

    def _reserve(self, engine: Any) -> None:
        """Raises torch.OutOfMemoryError where the weights, or rank 0's copy and its gradients, have no place:
        before the ranks begin to wait for each other. On a CPU MemoryError, since there the system would give
        the memory and end the run later."""
        largest = max(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
        numbers = 3 * largest + (2 * self._copy.size if self._copy else 0)
        if self._ranks.device.type != "cpu":
            torch.empty(numbers, dtype=torch.float32, device=self._ranks.device)
            return
        if self._copy:
            numbers += self._copy.size + activations(self._copy.gpt.config, self._batch.numel())
        needed, available = 4 * numbers, psutil.virtual_memory().available
        if needed > available:
            raise MemoryError(f"they need {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} are free")

    def _generators(self) -> list[torch.device]:
        return [self._ranks.device] if self._ranks.device.type == "cuda" else []

    @contextmanager
    def _failing(self, step: int) -> Iterator[None]:
        """What goes wrong inside ends the diagnostics, and not the run, but for a disk that is full."""
        try:
            yield
        except Exception as error:
            if disk_sentence(error, self._run_dir):  # the metrics would be next
                raise
            self._fail(step, error)

    def _fail(self, step: int, error: Exception) -> None:
        if not self._failed:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            since = f" from step {step} on" if step else ""
            self._say(f"no diagnostics{since} ({what}): the run goes on without them")
        self._failed, self._rows = True, []
