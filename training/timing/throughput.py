"""Where a run's time goes: tokens per second, step times, MFU, memory, and each phase's share."""

import resource
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch

from ..engine.hardware import peak_flops
from .mark import Mark

Phase = Literal["data", "forward", "backward", "optimizer", "validation", "checkpoint", "diagnostics"]
DATA_WAIT_LIMIT = 0.05
"""The share of a step's time that it may wait for data before the run says what to do."""
DATA_WAIT_STEPS = 20


class Throughput:
    """Times the phases of a loop and says what they add up to, since this process started to train.

    On a GPU a phase ends where its stream ends it, and is counted once that is over: the optimizer's with the
    next step. So timing waits for nothing.

    Args:
        flops_per_token: the model's, forward and backward.
        device: this rank's.
        ranks: how many train together.
    """

    def __init__(self, flops_per_token: int, device: torch.device, ranks: int) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        peak = peak_flops(torch.cuda.get_device_name(device)) if self._cuda else None
        self._peak = peak * ranks if peak else None
        self._flops_per_token = flops_per_token
        self._pending: deque[tuple[Phase, Mark, Mark]] = deque()
        self._seconds: dict[Phase, float] = {}
        self._steps: list[float] = []
        self._tokens = 0
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count what happens inside as `name`."""
        begin = Mark(self._device)
        yield
        self._pending.append((name, begin, Mark(self._device)))

    def step(self, tokens: int, seconds: float) -> dict[str, float]:
        """What metrics.jsonl says of the speed of a step that is over.

        Args:
            tokens: of all ranks.
            seconds: of the whole step.
        """
        self._tokens += tokens
        self._steps.append(seconds)
        rate = tokens / seconds
        facts = {"tokens_per_s": rate, "step_s": seconds}
        if self._peak:
            facts["mfu"] = rate * self._flops_per_token / self._peak
        return facts | {f"{name}_s": spent for name, spent in self._collect().items()}

    def summary(self) -> dict[str, Any]:
        """What summary.json says of the run's speed.

        Tokens per second and the steps' seconds leave out validation, checkpoints, diagnostics and the first
        step, which compiles. MFU is there where the GPU's peak is known. Shares are of the time since the
        start.
        """
        if self._pending:
            self._pending[-1][2].wait()
        self._collect()
        whole = time.perf_counter() - self._started
        later = self._steps[1:] or self._steps
        share = {name: round(spent / whole, 4) for name, spent in self._seconds.items()}
        facts: dict[str, Any] = {"peak_memory_gib": round(peak_memory(self._cuda) / 2**30, 3)}
        if later:
            mean_tokens = self._tokens / len(self._steps)
            rate = mean_tokens * len(later) / sum(later)
            p50, p90, p99 = (round(float(np.percentile(later, p)), 4) for p in (50, 90, 99))
            facts |= {"tokens_per_s": round(rate, 1), "step_s": {"p50": p50, "p90": p90, "p99": p99}}
            if self._peak:
                facts["mfu"] = round(rate * self._flops_per_token / self._peak, 4)
        return facts | {"time_share": share | {"other": round(max(0.0, 1 - sum(share.values())), 4)}}

    def sentence(self) -> str:
        """The summary in a line."""
        facts, words = self.summary(), []
        if "tokens_per_s" in facts:
            p50, p90, p99 = (facts["step_s"][key] for key in ("p50", "p90", "p99"))
            words.append(f"{facts['tokens_per_s']:,.0f} tokens per second")
            words.append(f"a step took {p50:.3g} s (p90 {p90:.3g}, p99 {p99:.3g})")
        if "mfu" in facts:
            words.append(f"MFU {facts['mfu']:.1%}")
        words.append(f"peak memory {facts['peak_memory_gib']:.2f} GiB per rank")
        shares = ", ".join(f"{name} {share:.0%}" for name, share in facts["time_share"].items())
        return "; ".join([*words, f"time: {shares}"])

    def _collect(self) -> dict[Phase, float]:
        """Seconds by phase since the last call, of those that are over."""
        seconds: dict[Phase, float] = {}
        while self._pending and self._pending[0][2].is_reached():
            name, begin, end = self._pending.popleft()
            seconds[name] = seconds.get(name, 0.0) + begin.seconds_until(end)
        for name, spent in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + spent
        return {name: round(spent, 5) for name, spent in seconds.items()}


class DataWait:
    """Says once what to do where steps wait for data.

    Args:
        workers: how many read the data now.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._waits: deque[tuple[float, float]] = deque(maxlen=DATA_WAIT_STEPS)
        self._said = False

    def advice(self, wait: float, seconds: float) -> str | None:
        """After a step that took so long and waited so long: what to do, once, when `DATA_WAIT_STEPS` steps
        waited more than `DATA_WAIT_LIMIT` of their time."""
        self._waits.append((wait, seconds))
        share = sum(wait for wait, _ in self._waits) / sum(seconds for _, seconds in self._waits)
        if self._said or len(self._waits) < DATA_WAIT_STEPS or share <= DATA_WAIT_LIMIT:
            return None
        self._said = True
        return (
            f"the last {DATA_WAIT_STEPS} steps waited for data {share:.0%} of their time: raise data.workers "
            f"(now {self._workers}), set data.cache_dir, or make token shards with scripts/tokenize_data.py"
        )


def peak_memory(cuda: bool) -> int:
    """Most bytes that this process has held: tensors on its GPU, or its resident memory on a CPU."""
    if cuda:
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
