"""GPT-2 (Radford et al. 2019) as nanoGPT users know it, with norm, block and topology as plug points."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .config import GPTConfig
from .designs import find_designs
from .document_mask import DocumentMask, document_mask
from .errors import UserError
from .layers import MLP, CausalSelfAttention
from .loss import Head, Reduction
from .shared_contexts import SharedContexts
from .sphere import UnitEmbedding, UnitHead
from .streams import BranchTopology
from .topologies import Topology, is_residual, takes_state
from .treatment import Treatment, ZeroGradient, cast_floating_buffers, for_buffers


class GPT(nn.Module):
    """Decoder-only transformer: GPT-2's learned positions and tied head, or what the config has for them.

    Initialisation is GPT-2's: normal(0, 0.02) for linear and embedding weights, zero biases, and
    normal(0, 0.02 / sqrt(2 n_layer)) for the projections that write to the residual stream
    (`*.c_proj.weight`). It runs after all modules exist; a module's own `init_weights()` runs last and wins.

    Attributes:
        blocks: the blocks, in order of depth.
        treatment: which buffers follow a cast, and which parameters train; `treat` changes it.
        sometimes: the parameters that get a gradient of 0 where a batch does not use them.
        compiled_shape: the (B, T) whose losses are computed compiled without training, too; None for none.
        is_validated: whether the tokens of this forward have that shape.
        brought_over: parameters that the design made in another precision or on another device than the
            model's, and that were brought to it.

    Raises UserError for a design that does not exist, lacks an option, cannot be built, or has complex
    parameters.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.treatment = Treatment()
        self.sometimes: list[nn.Parameter] = []
        self.compiled_shape: tuple[int, int] | None = None
        self.is_validated = False
        designs = find_designs(config)
        # In a tuple, because it is a part of the model only where a design keeps it.
        self._training_step = (designs.training_step,)
        on_sphere = getattr(designs.topology, "unit_embedding", False)
        embedding = UnitEmbedding if on_sphere and not config.tied else nn.Embedding
        wte = embedding(config.vocab_size, config.n_embd)
        self.blocks = designs.blocks(config)
        self._check_fixed_parts()
        learned = config.positions == "learned"
        positions = {"wpe": nn.Embedding(config.block_size, config.n_embd)} if learned else {}
        self.transformer = nn.ModuleDict(
            {
                "wte": wte,
                **positions,
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList(self.blocks),
                "topology": designs.joined(config, self.blocks),
                "ln_f": designs.final_norm(config),
            }
        )
        self._shares_state = takes_state(self.transformer["topology"])
        head = UnitHead if on_sphere else Head
        self.lm_head = head(config.n_embd, config.vocab_size, config.z_loss, config.logit_softcap)
        if config.tied:
            wte.weight = self.lm_head.weight
        self.brought_over = self._bring_over(self.lm_head.weight)
        self._init_weights()

    def _bring_over(self, like: torch.Tensor) -> tuple[str, ...]:
        """Give all parameters the precision and device of the model's own; returns those that had others.

        DeepSpeed refuses a model of several precisions, and casts all parameters to the JSON's.
        """
        if wrong := [name for name, parameter in self.named_parameters() if parameter.is_complex()]:
            raise UserError(
                f"the parameter {wrong[0]} of {self.config.norm} / {self.config.block} is complex, which no "
                "optimizer here trains: keep torch.view_as_real(z) as the parameter, and use "
                "torch.view_as_complex(parameter) in forward"
            )
        others = [
            (name, parameter)
            for name, parameter in self.named_parameters()
            if parameter.is_floating_point()
            and (parameter.dtype, parameter.device) != (like.dtype, like.device)
        ]
        for _, parameter in others:
            parameter.data = parameter.data.to(like)
        return tuple(name for name, _ in others)

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
        reduction: Reduction = "mean",
        documents: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Logits where there are no targets; the loss, and no logits, where there are.

        Args:
            idx: (B, T) token ids, T at most block_size.
            targets: (B, T) the ids to predict; `IGNORED_TARGET` (-1) is not learnt.
            reduction: `mean` for the batch's loss, `none` for (B, T) losses, 0 where the target is ignored.
            documents: (B, T) the number of each token's document: attention stays within it.

        Returns:
            `(logits, None)` without targets, logits (B, T, vocab_size). `(None, loss)` with them, the loss in
            nats per token, fp32: the logits of a whole batch never exist. It is the cross-entropy; the mean's
            gradient has `config.z_loss`'s added.

        Raises ValueError for impossible shapes, UserError for documents that `check_document_mask` refuses.
        """
        T = idx.shape[1]
        if self.config.block_size < T:
            raise ValueError(
                f"a sequence of {T} tokens is longer than model.block_size {self.config.block_size}"
            )
        hidden = self.hidden(idx, documents)
        if targets is None:
            return self.lm_head(hidden), None
        return None, self.lm_head(hidden, targets, reduction, self.is_validated)

    def hidden(
        self,
        idx: torch.Tensor,
        documents: torch.Tensor | None = None,
        shared: SharedContexts | None = None,
    ) -> torch.Tensor:
        """What the head reads: (B, T) token ids, and their documents -> (B, T, C) after the final norm.

        Args:
            idx: (B, T) token ids.
            documents: (B, T) as `forward` takes them.
            shared: what the tokens of a single row see in place of all before them, without `documents`. Only
                for a design in which nothing but `CausalSelfAttention` looks at other tokens or at positions.
        """
        self._set_document_mask(idx, documents, shared)
        self.is_validated = idx.shape == self.compiled_shape and not torch.is_grad_enabled()
        x = self.transformer["wte"](idx)
        if "wpe" in self.transformer:
            t = torch.arange(idx.shape[1], device=idx.device) if shared is None else shared.positions
            x = x + self.transformer["wpe"](t)
        if self.sometimes and self.training and torch.is_grad_enabled():
            x = ZeroGradient.apply(x, *self.sometimes)
        state = ({"idx": idx},) if self._shares_state else ()
        return self.transformer["ln_f"](self.transformer["topology"](self.transformer["drop"](x), *state))

    def _set_document_mask(
        self, idx: torch.Tensor, documents: torch.Tensor | None, shared: SharedContexts | None
    ) -> None:
        """Give every attention the mask of this call, or none.

        It stays until the next call, because activation checkpointing runs the blocks again in backward.
        """
        attentions = [module for module in self.modules() if isinstance(module, CausalSelfAttention)]
        mask: DocumentMask | None = shared
        if documents is not None:
            self.check_document_mask()
            if documents.shape != idx.shape:
                raise ValueError(
                    f"documents has shape {tuple(documents.shape)}, but the tokens' is {tuple(idx.shape)}"
                )
            dropout = self.training and any(attention.dropout > 0 for attention in attentions)
            mask = document_mask(documents, dropout)
        for attention in attentions:
            attention.document_mask = mask

    def check_document_mask(self) -> None:
        """Raises UserError where a block's attention is not `model.layers.CausalSelfAttention`, or where a
        module of it says `crosses_documents = True`."""
        for i, block in enumerate(self.blocks):
            crossing = [module for module in block.modules() if getattr(module, "crosses_documents", False)]
            if crossing:
                raise UserError(
                    f"data.document_mask is true, but block {i} of model.block '{self.config.block}' mixes "
                    f"tokens in {type(crossing[0]).__name__} too, which does not keep documents apart"
                )
            kinds = {type(module) for module in block.modules() if isinstance(module, CausalSelfAttention)}
            # A user's subclass need not look at the mask.
            if not kinds or not all(map(_is_ours, kinds)):
                raise UserError(
                    f"data.document_mask is true, but block {i} of model.block '{self.config.block}' does "
                    "not attend through model.layers.CausalSelfAttention, which alone keeps documents apart"
                )

    def _check_fixed_parts(self) -> None:
        """Raises UserError where a block has not the module that follows an option of the config."""
        mlp, rotary = self.config.mlp, self.config.positions == "rotary"
        for i, block in enumerate(self.blocks):
            place = f"block {i} of model.block '{self.config.block}'"
            # A nanoGPT block brings its own MLP, whose GELU is its own business.
            asked = "mlp" if mlp not in ("gelu_tanh", "gelu") else None
            asked = asked or (None if self.config.n_inner is None else "n_inner")
            if asked and not any(isinstance(module, MLP) for module in block.modules()):
                usual = getattr(GPTConfig, asked)
                raise UserError(
                    f"model.{asked} is '{getattr(self.config, asked)}', but {place} has an MLP of its own: "
                    f"only model.layers.MLP follows that option, so leave it {usual or 'out'}"
                )
            kinds = {type(module) for module in block.modules() if isinstance(module, CausalSelfAttention)}
            # A user's subclass that makes queries and keys itself need not turn them.
            turns = [_is_ours(kind.forward) and _is_ours(kind.qkv) for kind in kinds]
            if rotary and not (turns and all(turns)):
                raise UserError(
                    f"model.positions is rotary, but {place} does not make its queries and keys in "
                    "model.layers.CausalSelfAttention, which alone turns them: it would know no positions"
                )

    @property
    def training_step(self) -> int:
        """The optimizer step that the model is at: 0 for a new one, its checkpoint's for a loaded one."""
        return int(self._training_step[0].step)

    def set_training_step(self, step: int) -> None:
        """Say at which optimizer step the model is, for designs that read `config.training_step`."""
        self._training_step[0].set(step)

    def repeated_methods(self) -> list[tuple[nn.Module, str]]:
        """What repeats over depth, as (block, name of its method): `forward`, or both branches of a block
        that its topology takes apart. To replace such a method is to wrap that part of the model in place."""
        parts: list[tuple[nn.Module, str]] = []
        over_branches = isinstance(self.transformer["topology"], BranchTopology)
        for block in self.blocks:
            apart = over_branches and is_residual(block)
            names = ("attention_branch", "mlp_branch") if apart else ("forward",)
            parts += [(block, name) for name in names]
        return parts

    def methods_between(self) -> list[tuple[nn.Module, str]]:
        """What the topology computes between them and can be compiled, likewise as (module, name)."""
        topology = self.transformer["topology"]
        return topology.methods_between() if isinstance(topology, Topology) else []

    def treat(self, treatment: Treatment) -> "GPT":
        """Follow what was decided about the design, as to casts and what trains; returns the model itself."""
        self.treatment = treatment
        if treatment.buffers == "cast":
            cast_floating_buffers(self, self.lm_head.weight.dtype)
        for parameter in self.unused_parameters().values():
            parameter.requires_grad_(False)
        parameters = dict(self.named_parameters())
        self.sometimes = [parameters[name] for name in treatment.sometimes if name in parameters]
        return self

    def unused_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the treatment leaves out, by name."""
        left_out = set(self.treatment.unused)
        return {name: p for name, p in self.named_parameters() if name in left_out}

    def used_parameters(self) -> list[nn.Parameter]:
        """All other parameters, a tied embedding once."""
        left_out = set(self.treatment.unused)
        return [p for name, p in self.named_parameters() if name not in left_out]

    def num_parameters(self) -> int:
        """Parameters, a tied embedding counted once, unused ones not at all."""
        return sum(p.numel() for p in self.used_parameters())

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "GPT":
        # What `to`, `bfloat16`, `float` and the like call: here buffers follow the treatment.
        return super()._apply(for_buffers(self, fn, self.treatment.buffers), recurse)


def _is_ours(made: Any) -> bool:
    """Whether a class or function is of this package."""
    return made.__module__.partition(".")[0] == __name__.partition(".")[0]
