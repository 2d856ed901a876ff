"""Learning: the design overfits one batch, and falls with vanilla on the same text."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from ..catalogue import VARIANTS
from ..config import GPTConfig
from ..gpt import GPT
from .candidate import SEED, STEADY_STEP, Candidate, seed_all
from .report import Doubtful, Refused, Report

LAYERS = 6
FALLS = 0.1
"""Nats that a loss must fall by: less is no learning."""
WORSE = 0.2
"""Nats behind vanilla that are worth a warning."""
Batches = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


def check_learning(candidate: Candidate, report: Report, tokens: torch.Tensor | None) -> None:
    """Add the checks of learning; without tokens (N,) the text is random and only memorised."""
    report.run("learning.overfit", lambda: _overfit(candidate))
    if tokens is None:
        report.note("learning.text", "skipped: no tokens of a text were given")
        return
    report.run("learning.text", lambda: _text(candidate, tokens))


def losses(config: GPTConfig, batches: Batches, steps: int, lr: float) -> list[float]:
    """AdamW's losses, in nats per token: warm-up over a fifth of the steps, gradients clipped at 1.

    Parameters learn at `lr` times their `_lr_mult`, and without decay where they say `_no_weight_decay`. A
    design that reads the training step stays at `STEADY_STEP`.
    """
    seed_all()
    model = GPT(config).train()
    model.set_training_step(STEADY_STEP)
    groups = [_group(p, lr) for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    found = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / (steps / 5))
        _, loss = model(*batches(step))
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(float(loss.detach()))
        if not math.isfinite(found[-1]):
            break
    return found


def _group(parameter: nn.Parameter, lr: float) -> dict:
    decayed = parameter.ndim >= 2 and not getattr(parameter, "_no_weight_decay", False)
    peak = lr * getattr(parameter, "_lr_mult", 1.0)
    return {"params": [parameter], "lr": peak, "peak": peak, "weight_decay": 0.1 if decayed else 0.0}


def _shape(candidate: Candidate, length: int, vocab: int) -> GPTConfig:
    return replace(
        candidate.small,
        n_layer=min(candidate.small.n_layer, LAYERS),
        block_size=min(length, candidate.small.block_size),
        vocab_size=vocab,
    )


def _overfit(candidate: Candidate) -> str:
    """One batch of random tokens, which can be memorised but not predicted."""
    config = _shape(candidate, 32, 64)
    generator = torch.Generator().manual_seed(SEED)
    block = torch.randint(64, (2, config.block_size + 1), generator=generator)
    found = losses(config, lambda step: (block[:, :-1], block[:, 1:]), 60, 5e-3)
    candidate.numbers |= {"overfit_first": found[0], "overfit_last": found[-1]}
    sentence = f"one batch's loss goes from {found[0]:.2f} to {found[-1]:.2f} nats in {len(found)} steps"
    if not found[-1] <= found[0] - FALLS:
        raise Refused(f"{sentence}: it does not learn; look for a detached or closed path")
    if found[-1] > 0.5 * found[0]:
        raise Doubtful(f"{sentence}: it learns slowly")
    return sentence


def _text(candidate: Candidate, tokens: torch.Tensor) -> str:
    """Real text, the same batches and seed for vanilla."""
    vocab = int(tokens.max()) + 1
    config = _shape(candidate, 64, vocab)
    length, batch = config.block_size, 8
    count = (len(tokens) - 1) // length
    if count < batch:
        raise Doubtful(f"skipped: {len(tokens)} tokens are too few")
    inputs = tokens[: count * length].view(count, length)
    targets = tokens[1 : count * length + 1].view(count, length)

    def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.arange(step * batch, (step + 1) * batch) % count
        return inputs[rows], targets[rows]

    ours = losses(config, batches, 50, 2e-3)
    theirs = losses(replace(config, **VARIANTS["vanilla"].design), batches, 50, 2e-3)
    last, reference = sum(ours[-5:]) / 5, sum(theirs[-5:]) / 5
    candidate.numbers |= {"text_loss": last, "text_loss_vanilla": reference}
    sentence = f"{last:.3f} nats after {len(ours)} steps of text, vanilla {reference:.3f}"
    if not (math.isfinite(ours[-1]) and last < ours[0] - FALLS):
        raise Refused(f"{sentence}, from {ours[0]:.3f}: the loss does not fall")
    if last > reference + WORSE:
        raise Doubtful(f"{sentence}: {last - reference:.2f} behind")
    return sentence
