"""A NormLab model as Hugging Face's transformers loads it: `AutoModelForCausalLM.from_pretrained(folder)`.

`to_hf` copies this file into the folder, with the other files of the model that it imports.
"""

from dataclasses import MISSING, fields
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .config import GPTConfig


class NormLabConfig(PreTrainedConfig):
    """`GPTConfig`'s fields as a Hugging Face config. A design named `.module:Class` lies beside this file.

    Attributes:
        training_step: the optimizer step of the weights, for designs that read it.
        buffers: `cast` where floating buffers follow the weights to another precision, because the design
            does not run otherwise; `kept` where they stay as they are.
    """

    model_type = "normlab"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "n_embd",
        "max_position_embeddings": "block_size",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(self, **values: Any) -> None:
        for field in fields(GPTConfig):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            setattr(self, field.name, values.pop(field.name, default))
        self.training_step: int = values.pop("training_step", 0)
        self.buffers: str = values.pop("buffers", "kept")
        super().__init__(**{"tie_word_embeddings": self.tied, "use_cache": False} | values)

    def gpt_config(self) -> GPTConfig:
        """The model's own config. Raises ValueError for an impossible shape."""
        return GPTConfig(**{field.name: getattr(self, field.name) for field in fields(GPTConfig)})


class NormLabForCausalLM(PreTrainedModel, GenerationMixin):
    """A NormLab GPT with its head. It has no key-value cache: `generate` reads the whole text each step.

    Attributes:
        gpt: the model.
    """

    config_class = NormLabConfig

    def __init__(self, config: NormLabConfig) -> None:
        super().__init__(config)
        from .gpt import GPT
        from .treatment import Treatment

        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # transformers asks for the weights', which rounds constants
        try:
            with torch.device("cpu"):  # and for the meta device, where designs' constants are lost
                self.gpt = GPT(config.gpt_config())
        finally:
            torch.set_default_dtype(dtype)
        self.gpt.treat(Treatment.of({"buffers": config.buffers}))
        self.gpt.to(dtype)
        if config.buffers == "kept":
            names = [name for name, b in self.gpt.named_buffers() if b.dtype == torch.float32]
            self._keep_in_fp32_modules_strict = {f"gpt.{name}" for name in names}
        self.gpt.set_training_step(config.training_step)
        saved = self.gpt.state_dict().keys()
        self._constants = {n: b.clone() for n, b in self.gpt.named_buffers() if n not in saved}
        self._tied_weights_keys = {f"gpt.{name}": f"gpt.{first}" for name, first in tied(self.gpt).items()}
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`; buffers that are not saved keep what designs put there."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, value in model._constants.items():
            buffer = model.gpt.get_buffer(name)
            buffer.data = value.to(buffer.device)
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the GPT has initialised itself."""

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.gpt.transformer["wte"]

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.gpt.lm_head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput | tuple[torch.Tensor, ...]:
        """Logits, and the loss where there are labels.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), 0 for padding, which may stand left or right of a text.
            labels: (B, T) the same ids, shifted here; -100 is ignored.
            return_dict: false for a tuple.
            kwargs: `num_items_in_batch` for the loss; others are not used.

        Returns:
            logits (B, T, vocab_size), and loss in nats per token, fp32.

        Raises ValueError for padding inside a text, and for texts longer than `block_size`.
        """
        if attention_mask is None or bool(attention_mask.all()):
            logits, _ = self.gpt(input_ids)
        else:
            logits = self._padded(input_ids, attention_mask)
        loss = None
        if labels is not None:
            items = {"num_items_in_batch": kwargs.get("num_items_in_batch")}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **items)
        if not (self.config.return_dict if return_dict is None else return_dict):
            return (logits,) if loss is None else (loss, logits)
        return CausalLMOutput(loss=loss, logits=logits)

    def _padded(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The logits where texts begin at position 0 whatever stands left of them: (B, T, vocab_size)."""
        T = input_ids.shape[1]
        mask = attention_mask.bool()
        if mask.shape != input_ids.shape:
            raise ValueError(f"attention_mask is {tuple(mask.shape)}, input_ids {tuple(input_ids.shape)}")
        left = (mask.cumsum(1) == 0).sum(1, keepdim=True) % T  # 0 where all is padding
        positions = torch.arange(T, device=input_ids.device)
        to_front, back = (positions + left) % T, (positions - left) % T
        if (mask.gather(1, to_front).int().diff(dim=1) > 0).any():
            raise ValueError("attention_mask has padding inside a text: pad on the left to generate")
        logits, _ = self.gpt(input_ids.gather(1, to_front))
        return logits.gather(1, back[:, :, None].expand_as(logits))

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """All of the text, each time."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


def tied(module: nn.Module) -> dict[str, str]:
    """The further names of parameters that have several, and the first name of each."""
    first: dict[int, str] = {}
    others = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            others[name] = first[id(parameter)]
    return others
