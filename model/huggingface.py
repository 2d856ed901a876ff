"""GPT-2 in Hugging Face's form, in and out; any other variant as a folder that brings its own code."""

import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .config import GPTConfig, MLPKind
from .errors import UserError
from .gpt import GPT
from .norms import EPS
from .treatment import Treatment

# Hugging Face's Conv1D stores (in, out); nn.Linear stores (out, in).
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_MLPS: dict[str, MLPKind] = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
_PLAIN = {
    "activation_function": tuple(_MLPS),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
"""What GPT-2's config may say for the model to be the published one."""
_PLUGS = ("norm", "block", "topology")
_OWN_DESIGN = ".design_"  # how `write_code` names a design whose code it wrote


def from_hf(source: nn.Module | str | Path) -> GPT:
    """A model in Hugging Face's form as our GPT in fp32.

    Args:
        source: a GPT-2 (`GPT2LMHeadModel`, `GPT2Model`), or the folder or hub id of one, with or without
            `transformer.` before its keys, which becomes `vanilla`; or whatever `to_hf` wrote, whose
            `design_*.py` are run.

    Raises UserError where the checkpoint is no plain GPT-2, or where there is none.
    """
    if isinstance(source, nn.Module):
        config: Any = source.config
        values, state = config.to_dict(), source.state_dict()
        if values.get("model_type") != "normlab":
            return _from_gpt2(values, state)
        return _from_normlab(values, state, Path(str(sys.modules[type(source).__module__].__file__)).parent)
    from safetensors import SafetensorError
    from transformers import PreTrainedConfig

    try:
        values, _ = PreTrainedConfig.get_config_dict(source)
        if not values:
            raise OSError("it has no config.json")
        if values.get("model_type") == "normlab":
            return _from_normlab_folder(values, source)
        return _from_gpt2_folder(values, source)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{source} cannot be read: {str(error).splitlines()[0]}") from error


def config_from_hf(folder: Path) -> GPTConfig:
    """The shape and the designs of a model in Hugging Face's form, without its weights.

    Raises UserError as `from_hf` does.
    """
    from transformers import GPT2Config, PreTrainedConfig

    try:
        values, _ = PreTrainedConfig.get_config_dict(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {str(error).splitlines()[0]}") from error
    if values.get("model_type") == "normlab":
        return _normlab_config(values, folder)
    _check_gpt2(values)
    return _gpt2_config(GPT2Config(**values).to_dict())


def to_hf(gpt: GPT, folder: str | Path, eot: int | None = 50256) -> Path:
    """Write `gpt` in Hugging Face's form, its weights as fp32.

    `vanilla` with biases, and what else `is_gpt2`, becomes a `GPT2LMHeadModel`: `config.json` and
    `model.safetensors`. Every other variant brings its code, and needs transformers but not NormLab:
    `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.

    Args:
        gpt: the model.
        folder: is made where it is missing.
        eot: the token that ends a text; it is left out where the vocabulary is smaller.

    Raises UserError for a design that is not self-contained.
    """
    from safetensors.torch import save_file
    from transformers import GenerationConfig, GPT2Config, PreTrainedConfig

    from .modeling_normlab import NormLabConfig, tied

    config, folder = gpt.config, Path(folder)
    special: dict[str, Any] = {}
    if eot is not None and eot < config.vocab_size:
        special = {"bos_token_id": eot, "eos_token_id": eot}
    further = tied(gpt)
    state = {name: t.detach().cpu() for name, t in gpt.state_dict().items() if name not in further}
    state = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    if is_gpt2(config):
        theirs: PreTrainedConfig = GPT2Config(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            n_inner=config.n_inner,
            n_positions=config.block_size,
            vocab_size=config.vocab_size,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            activation_function=_ACTIVATIONS[config.mlp],
            tie_word_embeddings=config.tied,
            layer_norm_epsilon=config.norm_options.get("eps", EPS),
            architectures=["GPT2LMHeadModel"],
            dtype="float32",
            **{"bos_token_id": None, "eos_token_id": None} | special,
        )
        state = {name: t.t() if name.endswith(_TRANSPOSED) else t for name, t in state.items()}
        generation = GenerationConfig(**special)
        folder.mkdir(parents=True, exist_ok=True)
    else:
        from .export import write_code

        theirs = NormLabConfig(
            **asdict(write_code(config, folder)),
            training_step=gpt.training_step,
            buffers=gpt.treatment.buffers,
            architectures=["NormLabForCausalLM"],
            auto_map={
                "AutoConfig": "modeling_normlab.NormLabConfig",
                "AutoModelForCausalLM": "modeling_normlab.NormLabForCausalLM",
            },
            dtype="float32",
            **special,
        )
        state = {f"gpt.{name}": t for name, t in state.items()}
        generation = GenerationConfig(use_cache=False, **special)
    theirs.to_json_file(folder / "config.json")
    generation.save_pretrained(folder)
    # clone: two buffers may share memory, which safetensors refuses
    tensors = {name: t.clone(memory_format=torch.contiguous_format) for name, t in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def is_gpt2(config: GPTConfig) -> bool:
    """Whether Hugging Face's GPT-2 can hold the model: vanilla with biases, whatever its eps, GELU and head.

    The gradient of `z_loss` is nothing that the model computes.
    """
    parts = (config.norm, config.block, config.topology, config.qk_norm, config.positions)
    options = config.norm_options.keys() - {"eps"} or config.block_options or config.topology_options
    plain = parts == ("layernorm", "pre", "chain", "none", "learned") and config.mlp in _ACTIVATIONS
    return plain and config.bias and not (options or config.logit_softcap)


def _check_gpt2(theirs: dict[str, Any]) -> None:
    """Raises UserError for a config that is not plain GPT-2's."""
    if theirs.get("model_type") != "gpt2":
        raise UserError(f"the Hugging Face model is no GPT-2: its model_type is {theirs.get('model_type')!r}")
    problems = [
        f"{key} is {theirs[key]!r}"
        for key, plain in _PLAIN.items()
        if key in theirs and theirs[key] not in plain
    ]
    dropouts = {theirs.get(f"{kind}_pdrop", 0.1) for kind in ("resid", "embd", "attn")}
    if len(dropouts) > 1:
        problems.append("its three dropouts differ")
    if problems:
        raise UserError(f"the Hugging Face model is not a plain GPT-2: {'; '.join(problems)}")


def _from_gpt2_folder(values: dict[str, Any], source: str | Path) -> GPT:
    """Raises OSError where there are no weights."""
    from transformers import GPT2LMHeadModel

    _check_gpt2(values)
    theirs: Any
    loading: Any
    theirs, loading = GPT2LMHeadModel.from_pretrained(  # type: ignore[misc]
        source, output_loading_info=True, ignore_mismatched_sizes=True
    )
    # transformers only warns of these, and leaves random weights.
    unmatched = [*loading["missing_keys"], *loading["unexpected_keys"]]
    unmatched += [name for name, *_ in loading["mismatched_keys"]]
    if unmatched := [name for name in unmatched if not _is_mask(name)]:
        raise UserError(_no_match(unmatched))
    return _from_gpt2(theirs.config.to_dict(), theirs.state_dict())


def _from_gpt2(theirs: dict[str, Any], weights: dict[str, torch.Tensor]) -> GPT:
    """Our GPT from GPT-2's config and weights, in any of the layouts they have. Raises UserError."""
    _check_gpt2(theirs)
    gpt = GPT(_gpt2_config(theirs))
    prefix = "" if any(name.startswith("transformer.") for name in weights) else "transformer."
    state = {
        name if name.startswith("lm_head.") else prefix + name: t.t() if name.endswith(_TRANSPOSED) else t
        for name, t in weights.items()
        if not _is_mask(name)
    }
    embedding = state.get("transformer.wte.weight")
    if embedding is not None and gpt.config.tied:
        head = state.setdefault("lm_head.weight", embedding)
        if not torch.equal(head, embedding):
            raise UserError(
                "the Hugging Face model is not a plain GPT-2: its head is not tied to its embedding, though "
                "its tie_word_embeddings says so"
            )
    return _load(gpt, state)


def _gpt2_config(theirs: dict[str, Any]) -> GPTConfig:
    eps = theirs["layer_norm_epsilon"]
    return GPTConfig(
        n_layer=theirs["n_layer"],
        n_head=theirs["n_head"],
        n_embd=theirs["n_embd"],
        n_inner=None if theirs.get("n_inner") == 4 * theirs["n_embd"] else theirs.get("n_inner"),
        block_size=theirs["n_positions"],
        vocab_size=theirs["vocab_size"],
        dropout=theirs["resid_pdrop"],
        bias=True,
        mlp=_MLPS[theirs["activation_function"]],
        tied=theirs.get("tie_word_embeddings", True),
        norm_options={} if eps == EPS else {"eps": eps},
    )


def _is_mask(name: str) -> bool:
    """Whether a key is a causal mask, which older checkpoints hold."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def _from_normlab_folder(values: dict[str, Any], source: str | Path) -> GPT:
    """Raises OSError where there are no weights."""
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    folder = Path(source)
    if not folder.is_dir() and any(str(values.get(plug)).startswith(_OWN_DESIGN) for plug in _PLUGS):
        raise UserError(f"{source} brings code of its own: download it, look at it, and give its folder")
    return _from_normlab(values, load_file(str(cached_file(source, "model.safetensors"))), folder)


def _from_normlab(values: dict[str, Any], weights: dict[str, torch.Tensor], folder: Path) -> GPT:
    """Our GPT from what `to_hf` wrote, its designs read from the folder."""
    from .modeling_normlab import tied

    gpt = GPT(_normlab_config(values, folder))
    gpt.set_training_step(values.get("training_step", 0))
    gpt.treat(Treatment.of(values))
    state = {name.removeprefix("gpt."): t for name, t in weights.items()}
    for name, first in tied(gpt).items():
        if first in state:
            state.setdefault(name, state[first])
    return _load(gpt, state)


def _normlab_config(values: dict[str, Any], folder: Path) -> GPTConfig:
    """The config that `to_hf` wrote; designs with code of their own lie in the folder."""
    shape = {field.name: values[field.name] for field in fields(GPTConfig) if field.name in values}
    for plug in _PLUGS:
        module, _, name = shape[plug].rpartition(":")
        if module.startswith(_OWN_DESIGN):
            shape[plug] = f"{folder / module[1:]}.py:{name}"
    return GPTConfig(**shape)


def _load(gpt: GPT, state: dict[str, torch.Tensor]) -> GPT:
    ours = gpt.state_dict()
    different = ours.keys() ^ state.keys()
    different |= {name for name in ours.keys() & state.keys() if ours[name].shape != state[name].shape}
    if different:
        raise UserError(_no_match(sorted(different)))
    gpt.load_state_dict(state)
    return gpt


def _no_match(names: list[str]) -> str:
    return f"the Hugging Face model's weights do not fit its config: {', '.join(names[:4])} have no match"
