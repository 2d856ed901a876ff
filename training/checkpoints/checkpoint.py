"""Checkpoints: all that must survive, complete or absent, verified when read."""

import argparse
import copy
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.files import write_json

from ..engine.unusual import frozen, scalars_merged
from ..engine.weights import without_pattern
from ..run.reader import checkpoint_name, file_sha256, step_folders
from ..state import TrainState


def save_checkpoint(engine: Any, folder: Path, state: TrainState, keep: int) -> Path:
    """Write `folder/step_…`: the engine's files, trainer_state.json and manifest.json. All ranks call it.

    It is written under another name and renamed once it is complete. Afterwards only the newest `keep`
    checkpoints and the one with the best validation loss stay.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    final = folder / checkpoint_name(state.step)
    partial = folder / f".{final.name}.partial"
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    with frozen(engine.module):
        engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)

    own_lanes = {lane: cursor for lane, cursor in state.cursors.items() if lane % world_size == rank}
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, (own_lanes, _rng_state()))
    state.cursors = {lane: cursor for lanes, _ in gathered for lane, cursor in lanes.items()}
    state.rng = [rng for _, rng in gathered]
    if rank == 0:
        write_json(partial / "trainer_state.json", asdict(state) | {"world_size": world_size})
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest = {
            str(path.relative_to(partial)): {"size": path.stat().st_size, "sha256": file_sha256(path)}
            for path in files
        }
        write_json(partial / "manifest.json", {"step": state.step, "files": manifest})
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        _prune(folder, keep, state)
    dist.barrier()
    return final


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
    with frozen(engine.module), without_pattern(checkpoint.parent) as folder:
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
        with without_pattern(checkpoint.parent) as folder, scalars_merged(ds_to_universal):
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


def _rng_state() -> dict[str, str]:
    rng = {"cpu": torch.get_rng_state().numpy().tobytes().hex()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    return rng


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _prune(folder: Path, keep: int, state: TrainState) -> None:
    """Remove all checkpoints but the newest `keep` and the best."""
    for step, path in list(step_folders(folder).items())[:-keep]:
        if step != state.best_step:
            shutil.rmtree(path)
