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

from ..checkpoints.found import find_checkpoint
from ..run.reader import is_model_folder, read_recipe, read_summary, run_and_step, section_of

Weights = dict[str, torch.Tensor]


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
    """All weights by name: the optimizer's fp32 copies where there are any.

    Which of DeepSpeed's optimizers wrote the checkpoint is seen from its files.
    """
    files = {
        int(match[1]): file
        for file in checkpoint.glob("*_optim_states.pt")
        if (match := re.search(r"zero_pp_rank_(\d+)_", file.name))
    }
    model = checkpoint / "mp_rank_00_model_states.pt"
    if not files:
        return _weights_without_zero(_read(model))
    first, *others = (files[rank] for rank in sorted(files))
    states = [_read(first)["optimizer_state_dict"]]
    if "zero_stage" not in states[0]:
        states += [_read(file)["optimizer_state_dict"] for file in others]
        return _joined_partitions(_read(model), states)
    # Imported here: DeepSpeed takes seconds, and the other two kinds of checkpoint do without.
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with without_pattern(checkpoint.parent) as folder:
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=checkpoint.name)
    # ZeRO-3's are split, and among those; ZeRO-1's with fp32 weights are whole, and here alone.
    untrained = _read(model)["module"] if model.is_file() else {}
    return untrained | weights


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
    """The weights of the bf16 optimizer with fp32 accumulation, which DeepSpeed's function does not read.

    Each rank holds its part of every group's parameters, flattened in the order of `param_shapes` and padded
    at the end.
    """
    weights: Weights = {}
    for group, shapes in enumerate(model["param_shapes"]):
        flat = torch.cat([optimizer["single_partition_of_fp32_groups"][group] for optimizer in optimizers])
        sizes = [shape.numel() for shape in shapes.values()]
        parts = flat[: sum(sizes)].split(sizes)
        weights |= {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    weights = model["module"] | weights  # buffers, and parameters that do not train
    return weights | {name: weights[source] for name, source in model["shared_params"].items()}


def _read(file: Path) -> dict[str, Any]:
    # DeepSpeed pickles its configuration beside the tensors, which torch's safe loader refuses.
    return torch.load(file, map_location="cpu", weights_only=False)
