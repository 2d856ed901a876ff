"""A run folder's recipe and its checkpoints, read for evaluation."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import torch

    from data import Tokenizer
    from model import GPT


def read_recipe(run_dir: Path) -> dict[str, Any]:
    """RUN/recipe.yaml. Raises FileNotFoundError where the folder or the file is missing."""
    if not run_dir.is_dir():
        raise FileNotFoundError(f"there is no run folder {run_dir}")
    if not (run_dir / "recipe.yaml").is_file():
        raise FileNotFoundError(f"{run_dir} is not a run folder: it holds no recipe.yaml")
    return yaml.safe_load((run_dir / "recipe.yaml").read_text())


def read_tokenizer(run_dir: Path) -> "Tokenizer":
    """The tokenizer of a run. Raises FileNotFoundError and ValueError, as `open_tokenizer` does."""
    from data import open_tokenizer

    section = read_recipe(run_dir).get("data") or {}
    return open_tokenizer(section.get("tokenizer", "gpt2"))  # runs from before there was a choice


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

    The weights are the optimizer's fp32 master copies, joined over the ranks that wrote them; fp32 training
    without ZeRO has no other copy than the model's own.

    Raises FileNotFoundError and ValueError as `read_recipe` and `find_checkpoint` do.
    """
    # Imported here: the first functions above answer a mistyped command without torch's seconds of imports.
    from model import GPT, GPTConfig

    folder = find_checkpoint(Path(run_dir), step)
    shape = read_recipe(Path(run_dir))["model"]
    for file in Path(run_dir).glob("designs/*.py"):  # the code that was trained, whatever became of the file
        shape[file.stem] = f"{file}:{shape[file.stem].rpartition(':')[2]}"
    gpt = GPT(GPTConfig(**shape))
    gpt.load_state_dict(_fp32_weights(folder))
    return gpt.eval(), int(folder.name.removeprefix("step_"))


def _fp32_weights(folder: Path) -> "dict[str, torch.Tensor]":
    """All weights by name: the optimizer's fp32 copies where there are any."""
    import torch
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    def read(file: Path) -> dict[str, Any]:
        # DeepSpeed pickles its configuration beside the tensors, which torch's safe loader refuses.
        return torch.load(file, map_location="cpu", weights_only=False)

    model_file = folder / "mp_rank_00_model_states.pt"
    files = {
        int(match[1]): file
        for file in folder.glob("*_optim_states.pt")
        if (match := re.search(r"zero_pp_rank_(\d+)_", file.name))
    }
    if not files:
        model = read(model_file)
        masters = (model.get("optimizer") or {}).get("fp32_groups")
        if masters is None:
            return model["module"]
        # bf16 without ZeRO, whose groups have the copies' names from `build_engine`.
        groups = model["optimizer"]["optimizer_state_dict"]["param_groups"]
        for group, copies in zip(groups, masters, strict=True):
            model["module"] |= {
                name: copy.detach() for name, copy in zip(group["names"], copies, strict=True)
            }
        return model["module"] | {"lm_head.weight": model["module"]["transformer.wte.weight"]}
    first, *others = (files[rank] for rank in sorted(files))
    optimizers = [read(first)["optimizer_state_dict"]]
    if "zero_stage" in optimizers[0]:
        return get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
    # The bf16 optimizer with fp32 accumulation, which DeepSpeed's own function does not read: each rank holds
    # its part of every group's parameters, flattened in the order of `param_shapes` and padded at the end.
    optimizers += [read(file)["optimizer_state_dict"] for file in others]
    model = read(model_file)
    weights: dict[str, torch.Tensor] = {}
    for group, shapes in enumerate(model["param_shapes"]):
        flat = torch.cat([optimizer["single_partition_of_fp32_groups"][group] for optimizer in optimizers])
        sizes = [shape.numel() for shape in shapes.values()]
        parts = flat[: sum(sizes)].split(sizes)
        weights |= {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    return weights | {name: weights[source] for name, source in model["shared_params"].items()}
