"""Text that a model makes: prompts continued token by token, in a run and by `eval.generate`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data import Tokenizer
from model import GPT
from model.files import write_text

from .run.reader import read_json_lines

SAMPLE_TOKENS = 40
"""How many tokens follow each prompt of `eval.sample_text`."""


class Sample(NamedTuple):
    """A prompt and what the model writes after it."""

    prompt: str
    text: str


def continue_text(
    gpt: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Sample:
    """Let a model write on after a prompt, up to the end of the text.

    Args:
        gpt: in evaluation mode, on its device.
        tokenizer: the one that it was trained with.
        prompt: what stands before; an empty one begins a document. Of a long one the model reads the last
            `block_size` tokens.
        max_tokens: how many tokens at most.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among the likeliest tokens only.
        seed: of the draws. Prompts do not share them: each is continued as it would be alone.
    """
    device = next(gpt.parameters()).device
    generator = torch.Generator().manual_seed(seed)

    def choose(tokens: list[int]) -> int:
        idx = torch.tensor([tokens[-gpt.config.block_size :]], device=device)
        logits = gpt.lm_head(gpt.hidden(idx)[:, -1])[0]
        return next_token(logits[: tokenizer.vocab_size], temperature, top_k, generator)

    return _continued(choose, tokenizer, prompt, max_tokens, stops=True)


def next_token(
    logits: torch.Tensor,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
    top_p: float | None = None,
) -> int:
    """A token id by its (vocab_size,) logits: the likeliest at temperature 0, else drawn.

    `top_k` leaves the likeliest tokens to draw from, `top_p` of these the fewest that hold this probability.
    """
    logits = logits.float().cpu()
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(min(top_k, len(logits))).values[-1], -torch.inf)
    probabilities = (logits / temperature).softmax(-1)
    if top_p is not None:
        sorted_, order = probabilities.sort(descending=True)
        probabilities[order[sorted_.cumsum(-1) - sorted_ >= top_p]] = 0  # more likely ones hold top_p
    return int(torch.multinomial(probabilities, 1, generator=generator))


@torch.no_grad()
def sample_texts(
    engine: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    device: torch.device,
    before_token: Callable[[], None],
) -> list[Sample]:
    """The likeliest continuations of `eval.sample_text`, after a validation. All ranks call it.

    Nothing is drawn, and the model goes back into the mode that it had. Every rank makes as many forward
    passes, whatever the texts are: ZeRO-3 gathers the weights of each. What `before_token` raises, on all
    ranks, ends it.
    """
    gpt, was_training = engine.module, engine.training
    engine.eval()

    def choose(tokens: list[int]) -> int:
        before_token()
        logits, _ = engine(torch.tensor([tokens[-gpt.config.block_size :]], device=device))
        return int(logits[0, -1, : tokenizer.vocab_size].float().argmax())

    try:
        return [_continued(choose, tokenizer, prompt, SAMPLE_TOKENS, stops=False) for prompt in prompts]
    finally:
        engine.train(was_training)


def write_samples(path: Path, step: int, samples: Sequence[Sample]) -> None:
    """Add the samples of a step to a run's samples.jsonl; lines of later steps go, which are made again."""
    kept, _ = read_json_lines(path, lambda line: type(line.get("step")) is int and line["step"] < step)
    new = [{"step": step, **sample._asdict()} for sample in samples]
    if path.is_file() or new:
        write_text(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in (*kept, *new)))


@torch.no_grad()
def _continued(
    choose: Callable[[list[int]], int], tokenizer: Tokenizer, prompt: str, max_tokens: int, stops: bool
) -> Sample:
    """The prompt continued by what `choose` makes of all tokens before; the end of the text is cut off.

    Every document follows an end of text, which therefore is what an empty prompt begins with.
    """
    given = tokenizer.encode(prompt).tolist() or [tokenizer.eot]
    made: list[int] = []
    while len(made) < max_tokens and not (stops and tokenizer.eot in made):
        made.append(choose(given + made))
    if tokenizer.eot in made:
        made = made[: made.index(tokenizer.eot)]
    return Sample(prompt, tokenizer.decode(np.array(made, dtype=tokenizer.dtype)))
