"""GPT-2 (Radford et al. 2019) as nanoGPT users know it, with the norm and the block as plug points."""

import math
from dataclasses import asdict
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import nn

from .config import BlockConfig, GPTConfig
from .designs import block_class, norm_class


class GPT(nn.Module):
    """Decoder-only transformer with learned positions and an output head tied to the token embedding.

    Initialisation is GPT-2's: normal(0, 0.02) for linear and embedding weights, zero biases, and
    normal(0, 0.02 / sqrt(2 n_layer)) for the projections that write to the residual stream
    (`*.c_proj.weight`). It runs after all modules exist; a module's own `init_weights()` runs last and wins.

    Raises ValueError for a norm or block that does not exist.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        norm = norm_class(config.norm)
        block = block_class(config.block, norm)
        shape = asdict(config) | {"norm": norm}
        del shape["block"]
        wte = nn.Embedding(config.vocab_size, config.n_embd)
        blocks = nn.ModuleList(block(BlockConfig(**shape, layer_idx=i)) for i in range(config.n_layer))
        self.transformer = nn.ModuleDict(
            {
                "wte": wte,
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": blocks,
                "ln_f": norm(config.n_embd, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        wte.weight = self.lm_head.weight
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, mean=0.0, std=0.02 / math.sqrt(2 * self.config.n_layer))
        for module in self.modules():
            if callable(init_weights := getattr(module, "init_weights", None)):
                init_weights()

    def forward(
        self,
        idx: torch.Tensor,
        targets: torch.Tensor | None = None,
        reduction: Literal["mean", "none"] = "mean",
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Logits without targets; the loss with them.

        Args:
            idx: (B, T) token ids, T at most block_size.
            targets: (B, T) the ids to predict; -1 is ignored.
            reduction: `mean` for the batch's loss, `none` for (B, T) losses, 0 where the target is ignored.

        Returns:
            (logits, None) with logits (B, T, vocab_size), or (None, loss) with loss in nats a token, fp32.
        """
        T = idx.shape[1]
        if self.config.block_size < T:
            raise ValueError(
                f"a sequence of {T} tokens is longer than model.block_size {self.config.block_size}"
            )
        logits = self.lm_head(self.hidden(idx))
        if targets is None:
            return logits, None
        loss = F.cross_entropy(
            logits.float().view(-1, logits.size(-1)),
            targets.reshape(-1),
            ignore_index=-1,
            reduction=reduction,
        )
        return None, loss if reduction == "mean" else loss.view_as(targets)

    def hidden(self, idx: torch.Tensor) -> torch.Tensor:
        """What the head reads: (B, T) token ids -> (B, T, C) after the final norm."""
        positions = torch.arange(idx.shape[1], device=idx.device)
        x = self.transformer["drop"](self.transformer["wte"](idx) + self.transformer["wpe"](positions))
        for block in cast(nn.ModuleList, self.transformer["h"]):
            x = block(x)
        return self.transformer["ln_f"](x)

    def num_parameters(self) -> int:
        """Parameters, the tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())
