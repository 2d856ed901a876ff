"""What people write themselves: DDP around NormLab's model, and nanoGPT's loop around a model of its own."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model import GPTConfig
from training.engine.build import parameter_groups

from .bench import RATE, WEIGHT_DECAY, Bench, PlainLoss, Turn, timed


def ddp(bench: Bench, autocast: bool, compiled: bool) -> Turn:
    """DDP around the model with its logits whole: AdamW on fp32 weights, clipping."""
    gpt: Any = bench.gpt(PlainLoss)
    return _loop(bench, gpt, DistributedDataParallel(torch.compile(gpt) if compiled else gpt), autocast)


def nanogpt(bench: Bench) -> Turn:
    """nanoGPT's loop (Karpathy 2022): its model compiled whole, bf16 autocast, AdamW on fp32 weights.

    GELU and biases are GPT-2's and the first weights NormLab's, so that all contenders compute the same.
    """
    model = NanoGPT(bench.config).to(bench.device)
    model.load_state_dict(bench.gpt().state_dict())
    trained: Any = torch.compile(model)
    if bench.ranks.world_size > 1:
        trained = DistributedDataParallel(trained)
    return _loop(bench, model, trained, autocast=True)


def _loop(bench: Bench, module: nn.Module, trained: Any, autocast: bool) -> Turn:
    """Train `module`, called as `trained`, which sums gradients over ranks in the last micro-batch."""
    groups = parameter_groups(module, WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)

    def step(number: int) -> dict[str, float]:
        total = torch.zeros((), device=bench.device)
        for i, (idx, targets) in enumerate(bench.batches(number), start=1):
            alone = i < bench.accumulation and isinstance(trained, DistributedDataParallel)
            with trained.no_sync() if alone else nullcontext():
                with torch.autocast(bench.device.type, torch.bfloat16, enabled=autocast):
                    _, loss = trained(idx, targets)
                (loss / bench.accumulation).backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean_loss, grad_norm = torch.stack([total / bench.accumulation, norm]).tolist()
        return {"loss": mean_loss, "grad_norm": grad_norm, "lr": RATE}

    return timed(bench, step)


class NanoGPT(nn.Module):
    """GPT-2 in plain torch, with nanoGPT's names of parameters, which are NormLab's too."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.n_embd
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, width),
                "wpe": nn.Embedding(config.block_size, width),
                "h": nn.ModuleList(NanoBlock(width, config.n_head) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, idx: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T), (B, T) -> logits (B, T, vocab_size) and the mean loss."""
        parts = self.transformer
        x = parts["wte"](idx) + parts["wpe"](torch.arange(idx.shape[1], device=idx.device))
        blocks: Iterable[nn.Module] = parts["h"]  # type: ignore[assignment]
        for block in blocks:
            x = block(x)
        logits = self.lm_head(parts["ln_f"](x))
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


class NanoBlock(nn.Module):
    """Attention and MLP, each behind a LayerNorm and added to the residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = NanoAttention(width, heads), NanoMLP(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoAttention(nn.Module):
    """Causal attention of several heads by torch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(B, T, C))


class NanoMLP(nn.Module):
    """Four times as wide inside, with GPT-2's form of GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
