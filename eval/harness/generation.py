"""lm-eval's `generate_until` with a GPT: greedy or drawn, in batches, without a cache of keys and values.

A design may mix tokens in any way, so each token costs a forward pass over all before it.
"""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from model.errors import UserError
from training.samples import next_token

if TYPE_CHECKING:
    from ..scoring.lm import NormLabLM

KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")
"""lm-eval's gen kwargs that are used; another one would change the text and is refused."""


@dataclass(frozen=True)
class Decoding:
    """How a request's text is made.

    Attributes:
        until: texts that end it, and are cut off.
        max_tokens: how many tokens at most.
        temperature: divides the logits; 0 takes the likeliest token each time.
        top_k: draw among the likeliest tokens only; None for all.
        top_p: draw among the fewest tokens that hold this probability; None for all.
    """

    until: tuple[str, ...]
    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None

    @classmethod
    def of(cls, gen_kwargs: Mapping[str, Any], block_size: int) -> "Decoding":
        """From a task's gen kwargs, read as lm-eval's `hf` backend reads them.

        Raises UserError for a key that is not used here, a number that is out of its range, and more tokens
        than leave room for a prompt in the model's block.
        """
        given = normalize_gen_kwargs(dict(gen_kwargs))
        if unknown := [key for key in given if key not in KNOWN]:
            raise UserError(
                f"generation_kwargs has {unknown[0]!r}, which is not used here: known are {', '.join(KNOWN)}"
            )
        until = handle_stop_sequences(given["until"], eos=None)
        is_drawn = given["do_sample"]
        temperature = float(given.get("temperature", 1.0)) if is_drawn else 0.0
        top_k, top_p = given.get("top_k") or None, given.get("top_p")
        if is_drawn and temperature <= 0:
            raise UserError(
                f"generation_kwargs has do_sample with a temperature of {temperature:g}: set one above 0, or "
                "do_sample: false"
            )
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise UserError(f"generation_kwargs has a top_k of {top_k!r}, but it must be a whole number")
        if top_p is not None and not 0 < top_p <= 1:
            raise UserError(
                f"generation_kwargs has a top_p of {top_p!r}, but it must be above 0 and at most 1"
            )
        if not 0 < (max_tokens := given["max_gen_toks"]) < block_size:
            raise UserError(
                f"generation_kwargs asks for {max_tokens} tokens, but the model's block holds {block_size} "
                f"with the prompt: set max_gen_toks to a number from 1 to {block_size - 1}"
            )
        return cls(tuple(text for text in until if text), max_tokens, temperature, top_k, top_p)


@dataclass
class _Text:
    """A text in the making."""

    decoding: Decoding
    prompt: list[int]
    seed: int
    made: list[int] = field(default_factory=list)
    is_done: bool = False

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)


@torch.inference_mode()
def generate_texts(lm: "NormLabLM", requests: Sequence[Instance]) -> list[str]:
    """What the model writes after each (prompt, gen kwargs), up to the end of the text.

    A prompt is cut from the left to what `max_gen_toks` leaves of the block. The draws of a request depend on
    its task, item and repeat alone, not on what shares the batch. Raises UserError as `Decoding.of` does.
    """
    block_size = lm.gpt.config.block_size
    repeats: Counter[int] = Counter()
    texts = []
    for request in requests:
        prompt, gen_kwargs = request.args
        decoding = Decoding.of(gen_kwargs, block_size)
        tokens = (lm.tok_encode(prompt) or [lm.eot_token_id])[-(block_size - decoding.max_tokens) :]
        of_item = f"{request.task_name} {request.doc_id} {request.idx} {repeats[id(request)]}"
        repeats[id(request)] += 1
        texts.append(_Text(decoding, tokens, zlib.crc32(of_item.encode())))

    def answer(batch: Sequence[int]) -> list[str]:
        making = [texts[i] for i in batch]
        while making := [text for text in making if not text.is_done]:
            _add_tokens(lm, making)
        return [_cut(_decoded(lm, texts[i].made), texts[i].decoding) for i in batch]

    asked = [(text.prompt, asdict(text.decoding), text.seed) for text in texts]
    batches = list(lm.batches([len(text.prompt) + text.decoding.max_tokens for text in texts]))
    return lm.answers.collect(asked, batches, answer, " texts")


def _add_tokens(lm: "NormLabLM", batch: Sequence[_Text]) -> None:
    """One more token for each text, which is done where this one ends it."""
    rows = [text.prompt + text.made for text in batch]
    width = max(map(len, rows))
    # On the right, which causal attention does not see.
    padded = [row + [lm.eot_token_id] * (width - len(row)) for row in rows]
    hidden = lm.gpt.hidden(torch.tensor(padded, device=lm.device))
    last = hidden[range(len(rows)), [len(row) - 1 for row in rows]]
    logits = lm.gpt.lm_head(last)[:, : lm.tokenizer.vocab_size]
    for text, of_text in zip(batch, logits, strict=True):
        how = text.decoding
        token = next_token(of_text, how.temperature, how.top_k, text.generator, how.top_p)
        if token == lm.eot_token_id:
            text.is_done = True
            continue
        text.made.append(token)
        made = _decoded(lm, text.made) if how.until else ""
        text.is_done = len(text.made) == how.max_tokens or any(stop in made for stop in how.until)


def _decoded(lm: "NormLabLM", tokens: Sequence[int]) -> str:
    return lm.tokenizer.decode(np.array(tokens, dtype=lm.tokenizer.dtype))


def _cut(text: str, decoding: Decoding) -> str:
    return postprocess_generated_text(text, list(decoding.until), None)
