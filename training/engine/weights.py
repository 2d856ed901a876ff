"""Trained weights in a GPT of their own: a run's, out of what DeepSpeed wrote, or a Hugging Face folder's."""

import glob
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from model import GPT, GPTConfig
from model.errors import UserError
from model.huggingface import config_from_hf, from_hf
from model.plug_points import PLUG_POINTS, kept_design
from model.treatment import Treatment

from ..checkpoints.files import read_safetensors
from ..checkpoints.found import find_checkpoint
from ..checkpoints.safe_loading import load_safely
from ..run.reader import is_model_folder, read_recipe, read_summary, run_and_step, section_of

Weights = dict[str, torch.Tensor]
SAFETENSORS = "model.safetensors"
"""The fp32 weights in each checkpoint."""
MODEL = "mp_rank_00_model_states.pt"
"""DeepSpeed's file of the whole model; under ZeRO-3 there is one of each rank instead."""


def load_model(run_dir: str | Path, step: int | None = None) -> tuple[GPT, int]:
    """The model of a run at its last complete checkpoint or at `step`, on the CPU in fp32, and that step.

    The weights are the optimizer's fp32 master copies, joined over the ranks that wrote them; fp32 training
    without ZeRO has no other copy than the model's own.

    Raises UserError as `read_recipe` and `find_checkpoint` do, and where a file is not as it was written.
    """
    run_dir = Path(run_dir)
    folder, step = find_checkpoint(run_dir, step)
    gpt = GPT(_config_of_run(run_dir))
    if (run_dir / "summary.json").is_file():
        gpt.treat(Treatment.of(read_summary(run_dir)))
    gpt.load_state_dict(fp32_weights(folder))
    gpt.set_training_step(step)
    return gpt.eval(), step


def load_weights(source: str | Path, step: int | None = None) -> GPT:
    """The model of RUN, of RUN/checkpoints/step_N or of a folder in Hugging Face's form, on the CPU in fp32.

    Raises UserError as `load_model` and `from_hf` do, and for a step of a folder that has none.
    """
    run_dir, of_folder = run_and_step(Path(source).expanduser())
    if not is_model_folder(run_dir):
        return load_model(run_dir, of_folder if step is None else step)[0]
    if step is not None:
        raise UserError(f"{source} is one model in Hugging Face's form: it has no step {step}")
    return from_hf(run_dir).eval()


def config_of(source: str | Path) -> GPTConfig:
    """The shape and designs of what `load_weights` loads. Raises UserError where there is nothing."""
    run_dir, step = run_and_step(Path(source).expanduser())
    if is_model_folder(run_dir):
        return config_from_hf(run_dir)
    config = _config_of_run(run_dir)
    find_checkpoint(run_dir, step)
    return config


def _config_of_run(run_dir: Path) -> GPTConfig:
    shape = read_recipe(run_dir).get("model") or {}
    # the code that was trained, whatever became of the file
    kept = {
        plug: kept_design(run_dir / "designs", plug, shape[plug]) for plug in PLUG_POINTS if plug in shape
    }
    config: GPTConfig = section_of(run_dir, "model", **kept)
    return config


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """A hash of a model's weights by name and shape: the same for a run, its export and a copy of either."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fp32_weights(checkpoint: Path) -> Weights:
    """All weights by name: the optimizer's fp32 copies where there are any. No code of the files is executed.

    They stand in a safetensors file; of a checkpoint from before there was one they are put together.
    """
    file = checkpoint / SAFETENSORS
    return read_safetensors(file) if file.is_file() else joined_weights(checkpoint)


def joined_weights(checkpoint: Path) -> Weights:
    """`fp32_weights` out of DeepSpeed's files, which stay mapped into memory while a weight is used.

    Which of DeepSpeed's optimizers wrote them is seen from the files. Raises UserError for a file that holds
    what could execute code.
    """
    files = {
        int(match[1]): file
        for file in checkpoint.glob("*_optim_states.pt")
        if (match := re.search(r"zero_pp_rank_(\d+)_", file.name))
    }
    if not files:
        return _weights_without_zero(_read(checkpoint / MODEL))
    optimizers = [_read(files[rank])["optimizer_state_dict"] for rank in sorted(files)]
    if optimizers[0].get("zero_stage") == 3:
        names = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in sorted(files)]
        return _joined_slices([_read(checkpoint / name) for name in names], optimizers)
    return _joined_partitions(_read(checkpoint / MODEL), optimizers)


@contextmanager
def without_pattern(folder: Path) -> Iterator[Path]:
    """The folder, by a link where its path has brackets or other characters of a pattern, for which DeepSpeed
    would take it."""
    if not glob.has_magic(str(folder)):
        yield folder
        return
    with TemporaryDirectory() as links:
        link = Path(links, "folder")
        link.symlink_to(folder.absolute())
        yield link


def _weights_without_zero(model: dict[str, Any]) -> Weights:
    """The model's own weights; under the fp32 copies of bf16 training where it has some."""
    weights = model["module"]
    copies = (model.get("optimizer") or {}).get("fp32_groups")
    if copies is None:
        return weights
    # The groups of bf16 without ZeRO have the copies' names from `build_engine`.
    groups = model["optimizer"]["optimizer_state_dict"]["param_groups"]
    for group, group_copies in zip(groups, copies, strict=True):
        weights |= {name: copy.detach() for name, copy in zip(group["names"], group_copies, strict=True)}
    if not any("lm_head.weight" in group["names"] for group in groups):  # it is tied
        weights |= {"lm_head.weight": weights["transformer.wte.weight"]}
    return weights


def _joined_partitions(model: dict[str, Any], optimizers: list[dict[str, Any]]) -> Weights:
    """The weights of ZeRO-1 and ZeRO-2, and of the bf16 optimizer with fp32 accumulation.

    Each rank holds its part of every group's parameters, flattened in the order of `param_shapes` and padded
    at the end; some optimizers pad each parameter too.
    """
    weights: Weights = {}
    paddings = optimizers[0].get("param_alignment_paddings")
    for group, shapes in enumerate(model["param_shapes"]):
        flat = _joined([optimizer["single_partition_of_fp32_groups"][group] for optimizer in optimizers])
        offset = 0
        for number, (name, shape) in enumerate(shapes.items()):
            weights[name] = flat[offset : offset + shape.numel()].view(shape)
            offset += shape.numel() + (paddings[group][number] if paddings else 0)
    return _with_the_rest(weights, model)


def _joined_slices(models: list[dict[str, Any]], optimizers: list[dict[str, Any]]) -> Weights:
    """The weights of ZeRO-3: each rank holds its slice of every parameter, padded to the same length."""
    flats = [_joined(list(optimizer["fp32_flat_groups"])) for optimizer in optimizers]
    weights: Weights = {}
    offset = 0
    for shapes in models[0]["param_shapes"]:
        for name, shape in shapes.items():
            length = -(-shape.numel() // len(flats))
            whole = _joined([flat[offset : offset + length] for flat in flats])
            weights[name] = whole[: shape.numel()].view(shape)
            offset += length
    for name, shape in (models[0].get("frozen_param_shapes") or {}).items():
        whole = _joined([model["frozen_param_fragments"][name] for model in models])
        weights[name] = whole[: shape.numel()].view(shape)
    return _with_the_rest(weights, models[0])


def _with_the_rest(weights: Weights, model: dict[str, Any]) -> Weights:
    """With buffers, parameters that do not train, and the second names of tied ones."""
    weights = model["module"] | weights
    return weights | {name: weights[source] for name, source in model["shared_params"].items()}


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """The parts one after the other; a single one as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])


def _read(file: Path) -> dict[str, Any]:
    return load_safely(file, mmap=True)
