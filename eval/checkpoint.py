"""A run folder's recipe and its checkpoints, read for evaluation."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from model import GPT


def read_recipe(run_dir: Path) -> dict[str, Any]:
    """RUN/recipe.yaml. Raises FileNotFoundError where the folder or the file is missing."""
    if not run_dir.is_dir():
        raise FileNotFoundError(f"there is no run folder {run_dir}")
    if not (run_dir / "recipe.yaml").is_file():
        raise FileNotFoundError(f"{run_dir} is not a run folder: it holds no recipe.yaml")
    return yaml.safe_load((run_dir / "recipe.yaml").read_text())


def find_checkpoint(run_dir: Path, step: int | None = None) -> Path:
    """The folder of the last complete checkpoint, or of the one at `step`.

    A checkpoint is complete when every file of its manifest, which is written last, is there in full size.

    Raises FileNotFoundError where there is none, ValueError for a step that has none, with those that have.
    """
    complete = {
        int(match[1]): folder
        for folder in sorted((run_dir / "checkpoints").glob("step_*"))
        if (match := re.fullmatch(r"step_(\d+)", folder.name)) and _is_complete(folder)
    }
    if not complete:
        raise FileNotFoundError(f"{run_dir} has no complete checkpoint yet")
    if step is not None and step not in complete:
        there = ", ".join(str(s) for s in sorted(complete))
        raise ValueError(f"{run_dir} has no complete checkpoint of step {step}; the steps there are {there}")
    return complete[max(complete) if step is None else step]


def _is_complete(folder: Path) -> bool:
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        return all((folder / name).stat().st_size == entry["size"] for name, entry in files.items())
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def load_model(run_dir: str | Path, step: int | None = None) -> "tuple[GPT, int]":
    """The model of a run at its last complete checkpoint or at `step`, on the CPU in fp32, and that step.

    The weights are the optimizer's fp32 master copies, joined over the ranks that wrote them; a checkpoint
    written without ZeRO holds one copy of the weights, in the precision of its training.

    Raises FileNotFoundError and ValueError as `read_recipe` and `find_checkpoint` do.
    """
    # Imported here: the two functions above answer a mistyped command without torch's seconds of imports.
    import torch

    from model import GPT, GPTConfig

    folder = find_checkpoint(Path(run_dir), step)
    gpt = GPT(GPTConfig(**read_recipe(Path(run_dir))["model"]))
    if any(folder.glob("*_optim_states.pt")):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        state = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
    else:
        # DeepSpeed pickles its configuration beside the weights, which torch's safe loader refuses.
        file = folder / "mp_rank_00_model_states.pt"
        state = torch.load(file, map_location="cpu", weights_only=False)["module"]
    gpt.load_state_dict(state)
    return gpt.eval(), int(folder.name.removeprefix("step_"))
