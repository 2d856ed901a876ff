"""The main job as a user runs it, in processes of its own, on a small corpus."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
# torch's threads would wait for each other busily, which takes minutes where others use the cores too
ENVIRONMENT = os.environ | {"WANDB_MODE": "offline", "DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "passive"}
RECIPE = """
model: {{variant: vanilla, n_layer: 2, n_head: 2, n_embd: 32, block_size: 32, dropout: 0.1}}
data: {{source: {source}, tokenizer: {tokenizer}, validation_tokens: 4000, lanes: 4}}
train: {{steps: {steps}, val_every: 4, checkpoint_every: 3}}
schedule: {{warmup_steps: 2}}
"""
DS_CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 1},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.1, "torch_adam": True}},
}
BF16 = {
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
}


def make_job(folder: Path, texts: Sequence[str] | pa.Array, steps: int, tokenizer: str = "gpt2") -> Path:
    """Fill a folder with a corpus of `texts` in row groups of four, a recipe and DeepSpeed configs for it."""
    (folder / "corpus").mkdir()
    pq.write_table(pa.table({"text": texts}), folder / "corpus" / "topics.parquet", row_group_size=4)
    recipe = RECIPE.format(source=folder / "corpus", steps=steps, tokenizer=tokenizer)
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "fp32.json").write_text(json.dumps(DS_CONFIG))
    (folder / "bf16.json").write_text(json.dumps(DS_CONFIG | BF16))
    return folder


def command(
    job: Path, run_dir: Path, *options: str, ranks: int = 1, ds_config: str = "fp32.json"
) -> list[str]:
    launcher = [sys.executable]
    if ranks > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        runner = "deepspeed.launcher.runner"
        launcher += ["-m", runner, "--quiet", "--num_accelerators", str(ranks), "--master_port", port]
    files = ["--config", str(job / "recipe.yaml"), "--deepspeed_config", str(job / ds_config)]
    quick = ["--skip_preflight", "--train.compile", "false"]  # each takes seconds; an option asks for it
    return [*launcher, "train.py", *files, "--run_dir", str(run_dir), *quick, *options]


def run(words: list[str], timeout: int = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout)


def start_until(
    words: list[str], run_dir: Path, lines: int, stderr: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Start in a process group of its own, and wait for `lines` lines of metrics.jsonl or the end."""
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
    )
    metrics = run_dir / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= lines:
            break
        time.sleep(0.02)
    return process


def run_until(
    words: list[str], run_dir: Path, lines: int, signum: signal.Signals, whole_group: bool = True
) -> int:
    """Start, and once metrics.jsonl has `lines` lines send `signum` to all processes, or to the first alone.

    Returns the exit status.
    """
    process = start_until(words, run_dir, lines)
    if process.poll() is None:
        (os.killpg if whole_group else os.kill)(process.pid, signum)
    return process.wait(timeout=120)


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps_of(run_dir: Path) -> list[tuple[Any, ...]]:
    return [(line["kind"], line["step"], line["tokens"], line["loss"]) for line in lines_of(run_dir)]


def summary_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())
