"""The main job on a small corpus: as a user starts it, or forked where a test is not about the start."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.distributed import free_port, of_rank
from tests.processes import ENVIRONMENT, ROOT, Forked, fork
from tests.tiny import BF16

RECIPE = """
model: {{variant: vanilla, n_layer: 2, n_head: 2, n_embd: 32, block_size: 32, dropout: 0.1}}
data: {{source: {source}, tokenizer: {tokenizer}, validation_tokens: 4000, lanes: 4}}
train: {{steps: {steps}, val_every: 4, checkpoint_every: 3}}
schedule: {{warmup: 2}}
eval: {{after_training: false}}
"""
DS_CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 1},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.1, "torch_adam": True}},
}
TIMEOUT = 300
"""Seconds after which a job that does not end counts as broken; it matters only then."""


def make_job(folder: Path, texts: Sequence[str] | pa.Array, steps: int, tokenizer: str = "gpt2") -> Path:
    """Fill a folder with a corpus of `texts` in row groups of four, a recipe and DeepSpeed configs for it."""
    (folder / "corpus").mkdir()
    pq.write_table(pa.table({"text": texts}), folder / "corpus" / "topics.parquet", row_group_size=4)
    recipe = RECIPE.format(source=folder / "corpus", steps=steps, tokenizer=tokenizer)
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "fp32.json").write_text(json.dumps(DS_CONFIG))
    (folder / "bf16.json").write_text(json.dumps(DS_CONFIG | BF16))
    return folder


def arguments(job: Path, run_dir: Path, *options: str, ds_config: str = "fp32.json") -> list[str]:
    """Those of train.py."""
    files = ["--config", str(job / "recipe.yaml"), "--deepspeed_config", str(job / ds_config)]
    quick = ["--skip_preflight", "--train.compile", "false"]  # each takes seconds; an option asks for it
    quick += ["--train.diagnostics", "false"]
    return [*files, "--run_dir", str(run_dir), *quick, *options]


def command(words: Sequence[str], ranks: int = 1) -> list[str]:
    """What a user types to train with these arguments."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "deepspeed.launcher.runner", "--quiet"]
        launcher += ["--num_accelerators", str(ranks), "--master_port", str(free_port())]
    return [*launcher, "train.py", *words]


def train_main(words: list[str]) -> int:
    import train

    return train.main(words)


Main = Callable[[list[str]], int]


class Started:
    """A job under way: the command that a user types, or its ranks, forked."""

    def __init__(self, words: Sequence[str], ranks: int, typed: bool, main: Main) -> None:
        # Files, and not pipes: a job may print more than a pipe holds before anyone reads it.
        self._out = tempfile.TemporaryFile()  # noqa: SIM115
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self._processes: list[subprocess.Popen[bytes] | Forked]
        if typed:
            self._processes = [
                subprocess.Popen(
                    command(words, ranks), cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                    stdout=self._out, stderr=self._err, start_new_session=True,
                )
            ]  # fmt: skip
        else:
            port = free_port()
            self._processes = [
                fork(
                    main, list(words), argv=["train.py", *words], stdout=self._out, stderr=self._err,
                    environment=ENVIRONMENT | (of_rank(rank, ranks, port) if ranks > 1 else {}),
                )
                for rank in range(ranks)
            ]  # fmt: skip

    @property
    def pid(self) -> int:
        """Of the command, or of rank 0."""
        return self._processes[0].pid

    def poll(self) -> int | None:
        """The exit status: that of the first rank that did not end well. None while it runs."""
        statuses = [process.poll() for process in self._processes]
        return None if None in statuses else next(filter(None, statuses), 0)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """`poll` when it has ended; if it does not end in time it is killed."""
        end = time.monotonic() + timeout
        try:
            for process in self._processes:
                process.wait(max(0, end - time.monotonic()))
        finally:
            self.send(signal.SIGKILL)
        status = self.poll()
        assert status is not None
        return status

    def send(self, signum: signal.Signals, whole_group: bool = True) -> None:
        """A signal to all processes, or to the command or rank 0 alone."""
        for process in self._processes if whole_group else self._processes[:1]:
            if process.poll() is None:
                with suppress(ProcessLookupError):  # it ends now
                    (os.killpg if whole_group else os.kill)(process.pid, signum)

    def printed(self) -> tuple[str, str]:
        """What came to stdout and stderr."""
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode())
        return texts[0], texts[1]


def start_until(
    words: Sequence[str],
    lines: int,
    ranks: int = 1,
    typed: bool = False,
    main: Main = train_main,
) -> Started:
    """Start a job of these arguments, and wait for `lines` lines of metrics.jsonl or its end."""
    started = Started(words, ranks, typed, main)
    metrics = Path(words[words.index("--run_dir") + 1]) / "metrics.jsonl"
    while started.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= lines:
            break
        time.sleep(0.02)
    return started


def run(
    words: Sequence[str],
    ranks: int = 1,
    typed: bool = False,
    main: Main = train_main,
    timeout: float = TIMEOUT,
) -> subprocess.CompletedProcess[str]:
    """A job of these arguments to its end: forked, or `typed`, which starts interpreters as a user does."""
    started = Started(words, ranks, typed, main)
    status = started.wait(timeout)
    return subprocess.CompletedProcess(list(words), status, *started.printed())


def run_until(
    words: Sequence[str],
    lines: int,
    signum: signal.Signals,
    ranks: int = 1,
    typed: bool = False,
    whole_group: bool = True,
    main: Main = train_main,
) -> int:
    """Start, and once metrics.jsonl has `lines` lines send `signum` to all processes, or to the first alone.

    Returns the exit status.
    """
    started = start_until(words, lines, ranks, typed, main)
    started.send(signum, whole_group)
    return started.wait()


def run_command(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Another command of the checkout, in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT
    )


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps_of(run_dir: Path) -> list[tuple[Any, ...]]:
    return [(line["kind"], line["step"], line["tokens"], line["loss"]) for line in lines_of(run_dir)]


def summary_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())
