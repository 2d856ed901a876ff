"""What `on_device.sh` prints: `facts.py machine` of the machine, `facts.py run RUN_DIR` of a run."""

import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

PACKAGES = """torch triton deepspeed transformers tokenizers tiktoken numpy pandas pyarrow scipy datasets
lm-eval pydantic jsonargparse lazy-loader huggingface-hub fsspec psutil"""


def machine() -> None:
    """Print the versions of Python, of CUDA and of the packages, and the GPU."""
    import torch

    print(f"Python {platform.python_version()}, {platform.machine()}, CUDA {torch.version.cuda}")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        print(f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
        print(f"cuDNN {torch.backends.cudnn.version()}, NCCL {torch.cuda.nccl.version()}")  # type: ignore[attr-defined]
    else:
        print("no GPU that torch can use")
    print(", ".join(f"{name} {version_of(name)}" for name in PACKAGES.split()))


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "MISSING"


def run(folder: Path) -> None:
    """Print in two lines how a run went."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        steps: list[dict[str, Any]] = [line for line in lines if line["kind"] == "train"]
        first, last, speed = steps[0], steps[-1], summary.get("throughput", {})
        print(
            f"RESULT {folder.name}: {summary['status']}, {speed.get('tokens_per_s')} tokens/s, "
            f"MFU {speed.get('mfu')}, step {speed.get('step_s')} s, peak {speed.get('peak_memory_gib')} GiB, "
            f"loss {first['loss']:.3f} -> {last['loss']:.3f}, validation {summary.get('val_loss')}, "
            f"gradient norm {last['grad_norm']:.3f}, skipped {summary.get('skipped_steps')}"
        )
        seconds = {key: value for key, value in last.items() if key.endswith("_s")}
        print(f"    last step {seconds}, start-up {summary.get('start_up_s')}")
    except (OSError, ValueError, LookupError, TypeError) as error:
        print(f"RESULT {folder.name}: none ({type(error).__name__}: {error})")


if __name__ == "__main__":
    if sys.argv[1:] == ["machine"]:
        machine()
    elif sys.argv[1:2] == ["run"] and len(sys.argv) == 3:
        run(Path(sys.argv[2]))
    else:
        sys.exit("usage: facts.py machine | facts.py run RUN_DIR")
