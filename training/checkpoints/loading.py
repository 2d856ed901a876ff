"""A checkpoint goes into an engine: on as many ranks as wrote it, or on another number of them."""

import argparse
import copy
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..engine.unusual import frozen, scalars_merged
from ..engine.weights import without_pattern
from ..state import TrainState
from .safe_loading import no_code_from_files


def load_checkpoint(engine: Any, checkpoint: Path, state: TrainState) -> None:
    """Load weights, optimizer and the state's random numbers into this rank. All ranks call it.

    With `checkpoint.load_universal` it may have been written on another number of ranks. A rank that it does
    not know keeps its generators as they are: seeded for this rank, and not used before.
    """
    groups = engine.optimizer.param_groups
    configured = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    universal = engine.load_universal_checkpoint() and engine.zero_optimization()
    # Without ZeRO nothing depends on the ranks, and DeepSpeed would load nothing.
    engine._config.load_universal_checkpoint = universal
    if universal:
        with frozen(engine.module):
            names = [name for name, parameter in engine.module.named_parameters() if parameter.requires_grad]
        checkpoint = _universal(checkpoint, names)
        loaded = _load(engine, checkpoint)
        # Under ZeRO-3 all groups get one and the same counter, which each of them would count up.
        for adam_state in engine.basic_optimizer.state.values():
            adam_state["step"] = copy.deepcopy(adam_state["step"])
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(checkpoint)
    else:
        loaded = _load(engine, checkpoint)
    if loaded is None:
        raise ValueError(f"DeepSpeed found no checkpoint in {checkpoint}")
    # Universal loading under ZeRO-3 gives all groups what the first has: its weight decay, its multiplier.
    for group, settings in zip(engine.optimizer.param_groups, configured, strict=True):
        group.update(settings)
    if dist.get_rank() < len(state.rng):
        rng = state.rng[dist.get_rank()]
        torch.set_rng_state(_bytes(rng["cpu"]))
        if "cuda" in rng:
            torch.cuda.set_rng_state(_bytes(rng["cuda"]))


def _load(engine: Any, checkpoint: Path) -> str | None:
    with frozen(engine.module), without_pattern(checkpoint.parent) as folder, no_code_from_files():
        loaded, _ = engine.load_checkpoint(str(folder), tag=checkpoint.name)
    return loaded


def _universal(checkpoint: Path, names: Sequence[str]) -> Path:
    """`checkpoint` in DeepSpeed's universal format: a folder beside it, whole or absent. All ranks call it.

    Raises ValueError where the weights or moments of one of the parameters `names` are missing.
    """
    # Imported here: few runs change the number of their ranks, and DeepSpeed's module costs a second.
    from deepspeed.checkpoint import ds_to_universal

    final = checkpoint.with_name(f".{checkpoint.name}.universal")
    problem: list[str | None] = [None]
    if dist.get_rank() == 0:
        partial = final.with_name(f"{final.name}.partial")
        for leftover in (partial, final):
            shutil.rmtree(leftover, ignore_errors=True)
        with (
            without_pattern(checkpoint.parent) as folder,
            scalars_merged(ds_to_universal),
            no_code_from_files(),
        ):
            # One process and one parameter at a time: forking would copy what this process holds.
            options = argparse.Namespace(
                input_folder=str(folder / checkpoint.name),
                output_folder=str(folder / partial.name),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
            ds_to_universal.main(options)
        (partial.parent / "latest_universal").unlink()  # it would name a folder that is renamed
        states = [f"{name}/{state}.pt" for name in names for state in ("fp32", "exp_avg", "exp_avg_sq")]
        missing = [
            name for name in (*states, "optimizer_state.pt") if not (partial / "zero" / name).is_file()
        ]
        if missing:
            problem = [f"{missing[0]} is missing"]
        else:
            os.rename(partial, final)
    dist.broadcast_object_list(problem)
    if problem[0] is not None:
        raise ValueError(f"{checkpoint} could not be converted for another number of ranks: {problem[0]}")
    return final


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
