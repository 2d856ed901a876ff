"""What a step is: gradient, clipping, learning rates and loss of the global batch, however it is split."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from torch import nn

from data import IGNORED_TARGET, inputs_and_targets
from model import GPT
from tests.distributed import run_on_ranks
from tests.tiny import DS_CONFIG, ENGINE_TINY
from training.config import DeepSpeedConfig, read_deepspeed_config
from training.engine.build import build_engine, gradient_norm, parameter_groups, set_learning_rate
from training.feed import Feed
from training.step import train_step
from training.watch.stop import StopRequest

SEQUENCES = 8
SPLITS = {1: [(1, 8), (4, 2), (8, 1)], 2: [(1, 4), (2, 2), (4, 1)]}
"""(accumulation steps, micro-batch) by the number of ranks: always 8 sequences."""


def batch() -> torch.Tensor:
    """(sequences of the global batch, T + 1)."""
    return torch.randint(0, 128, (SEQUENCES, 17), generator=torch.Generator().manual_seed(5))


def model() -> GPT:
    torch.manual_seed(0)
    return GPT(ENGINE_TINY)


def config(
    folder: Path, world_size: int, accumulation: int, micro_batch: int, stage: int, **keys: Any
) -> DeepSpeedConfig:
    path = folder / f"ds_{world_size}_{dist.get_rank()}.json"
    ds_config = DS_CONFIG | {
        "train_batch_size": SEQUENCES,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": {"stage": stage},
    }
    path.write_text(json.dumps(ds_config | keys))
    return read_deepspeed_config(path, {}, world_size)


def gradients_of_every_split(rank: int, world_size: int, folder: Path) -> None:
    reference = model()
    _, loss = reference(batch()[:, :-1], batch()[:, 1:])
    loss.backward()
    norm = float(nn.utils.get_total_norm([p.grad for p in reference.parameters()]))
    for stage in (0, 1, 2, 3):
        for accumulation, micro_batch in SPLITS[world_size]:
            gpt = model()
            engine = build_engine(gpt, config(folder, world_size, accumulation, micro_batch, stage))
            for part in batch()[rank::world_size].split(micro_batch):
                assert not engine.was_step_applied()
                _, loss = engine(part[:, :-1], part[:, 1:])
                engine.backward(loss)
                if engine.is_gradient_accumulation_boundary():
                    for ours, theirs in zip(gpt.parameters(), reference.parameters(), strict=True):
                        gradient = safe_get_full_grad(ours) if stage else ours.grad
                        assert (gradient - theirs.grad).abs().max() <= 1e-6
                engine.step()
            assert engine.was_step_applied() and engine.global_steps == 1
            assert gradient_norm(engine) == pytest.approx(norm, rel=1e-6)
            engine.destroy()


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_gradient_is_the_whole_batchs_for_any_split(world_size: int, tmp_path: Path) -> None:
    run_on_ranks(gradients_of_every_split, world_size, world_size, tmp_path)


def clipped_once(rank: int, folder: Path) -> None:
    """Two micro-batches a rank, whose gradients are long and mostly cancel.

    With betas of 0 and an eps far above any gradient, AdamW's step is lr / eps times the gradient: what it
    was clipped to shows in the weights.
    """
    factors, step = (1000.0, -900.0), 0.1
    linear = {"lr": step * 1e6, "betas": [0.0, 0.0], "eps": 1e6, "weight_decay": 0.0, "torch_adam": True}
    reference, each = model(), []
    for factor, part in zip(factors, batch().split(4), strict=True):
        _, loss = reference(part[:, :-1], part[:, 1:])
        each.append(torch.autograd.grad(factor * loss, list(reference.parameters())))
    whole = [sum(parts) / 2 for parts in zip(*each, strict=True)]
    length = float(nn.utils.get_total_norm(whole))
    of_each = [1 / float(nn.utils.get_total_norm(list(gradients))) for gradients in each]
    for stage in (0, 1, 2, 3):
        gpt = model()
        ds_config = config(folder, 2, 2, 2, stage, optimizer={"type": "AdamW", "params": linear})
        engine = build_engine(gpt, ds_config)
        for factor, part in zip(factors, batch().split(4), strict=True):
            part = part[rank::2]
            _, loss = engine(part[:, :-1], part[:, 1:])
            engine.backward(factor * loss)
            engine.step()
        assert length > 2 and gradient_norm(engine) == pytest.approx(length, rel=1e-5)  # before clipping
        far = 0.0
        for i, (before, ours) in enumerate(zip(model().parameters(), gpt.parameters(), strict=True)):
            after = safe_get_full_fp32_param(ours) if stage else ours
            moved = (before - after).detach() / step
            assert (moved - whole[i] / length).abs().max() <= 1e-5
            apart = sum(scale * gradients[i] for scale, gradients in zip(of_each, each, strict=True)) / 2
            far = max(far, float((moved - apart).abs().max()))
        assert far > 1e-2  # what clipping each micro-batch would have given is elsewhere
        engine.destroy()


class Batches:
    """One rank's micro-batches, as a loader gives them."""

    def __init__(self, micro_batches: Iterator[torch.Tensor]) -> None:
        self.bad: Counter[str] = Counter()
        self._micro_batches = micro_batches

    def __next__(self) -> tuple[torch.Tensor, dict[int, Any]]:
        return next(self._micro_batches), {}


def one_step(rank: int, folder: Path) -> None:
    """Rank 1's sequences are mostly filling: its mean must not weigh as much as rank 0's."""
    eot = 0
    tokens = batch().clamp(min=1)
    for row in range(1, SEQUENCES, 2):
        tokens[row, 3 + row // 2 :] = eot
    inputs, targets = inputs_and_targets(tokens, eot)
    live = targets != IGNORED_TARGET
    assert live[0::2].all() and live[1::2].float().mean() < 0.4
    reference = model()
    _, losses = reference(inputs, targets, reduction="none")
    expected = losses.sum() / live.sum()
    (losses.sum() / targets.numel()).backward()
    norm = float(nn.utils.get_total_norm([p.grad for p in reference.parameters()]))

    engine = build_engine(model(), config(folder, 2, 2, 2, 1))
    stop = StopRequest()
    feed = Feed(Batches(iter(tokens[rank::2].split(2))), 2, {})
    feed.fetch()
    set_learning_rate(engine, 1e-3)
    result = train_step(
        engine,
        feed,
        device=torch.device("cpu"),
        eot=eot,
        document_mask=False,
        fetch_next=False,
        stop=stop,
        phase=lambda name: nullcontext(),
    )
    assert result.applied and not result.stop
    assert engine.global_steps == 1 and engine.was_step_applied()
    assert result.tokens == int(live.sum())
    assert result.loss == pytest.approx(float(expected), rel=1e-6)
    of_ranks = torch.stack([losses[r::2].sum() / live[r::2].sum() for r in range(2)])
    assert abs(float(of_ranks.mean() - expected)) > 1e-3  # the mean of the ranks' means is another number
    assert result.grad_norm == gradient_norm(engine) == pytest.approx(norm, rel=1e-6)


def test_the_logged_loss_is_the_mean_over_the_targets_of_all_ranks(tmp_path: Path) -> None:
    run_on_ranks(one_step, 2, tmp_path)


def rates_of_steps(rank: int, folder: Path) -> None:
    """Adam's first step moves a gain by the learning rate; accumulating, nothing moves."""
    gpt = model()
    engine = build_engine(gpt, config(folder, 2, 4, 1, 1))
    gain = gpt.transformer.ln_f.weight
    for rate in (1e-3, 5e-3):
        set_learning_rate(engine, rate)
        assert {group["lr"] for group in engine.optimizer.param_groups} == {rate}
        before = gain.detach().clone()
        for number, part in enumerate(batch()[rank::2].split(1)):
            assert torch.equal(gain, before)
            _, loss = engine(part[:, :-1], part[:, 1:])
            engine.backward(loss)
            engine.step()
            assert {group["lr"] for group in engine.optimizer.param_groups} == {rate}
            assert engine.was_step_applied() == (number == 3)
        assert float((gain - before).abs().max()) == pytest.approx(rate, rel=0.02)  # the same gradient twice


def test_clipping_comes_after_accumulation(tmp_path: Path) -> None:
    run_on_ranks(clipped_once, 2, tmp_path)


def test_a_rate_holds_for_a_global_step(tmp_path: Path) -> None:
    run_on_ranks(rates_of_steps, 2, tmp_path)


@pytest.mark.parametrize("bias", [True, False])
def test_weight_decay_falls_where_nanogpt_has_it(bias: bool) -> None:
    """nanoGPT's configure_optimizers: by name, tied tensors once, dim >= 2 decays and all others do not."""
    gpt = GPT(dataclasses.replace(ENGINE_TINY, bias=bias))
    by_name = {name: p for name, p in gpt.named_parameters() if p.requires_grad}
    decayed = {name for name, p in by_name.items() if p.dim() >= 2}
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= decayed and "lm_head.weight" not in by_name
    groups = parameter_groups(gpt, 0.1)
    names = {id(p): name for name, p in by_name.items()}
    ours = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in groups}
    assert ours == {0.1: decayed, 0.0: by_name.keys() - decayed} and len(groups) == 2
