"""Our GPT as a model of lm-eval, with the log-likelihoods that its `hf` backend gives the same weights.

Two exceptions: a context of whitespace alone is empty, as all of it moves into the continuation (lm-eval
0.4.13 scores that from the wrong place), and a continuation longer than the block is scored in windows.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from data import Tokenizer
from model import GPT

from ..harness.generation import generate_texts
from .answers import Answers
from .products import FasterLinear
from .shared_contexts import Row, Tokens, in_batches, why_not_shared
from .token_scores import token_scores

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}
"""Input tokens per forward pass, padding included, by device. On a CPU, with contexts shared, no number from
512 to 4096 is more than 5 % faster at GPT-2 small; without, more add padding. A GPU's is not measured."""


class NormLabLM(TemplateLM):
    """Scores continuations and documents with a GPT where it lies, in the precision it has.

    A batch is one row of tokens, in which what requests have in common at their beginnings is once
    (`shared_contexts`). For a design that does not allow it requests are sorted by length and padded on the
    right, which causal attention with absolute positions does not see. The head reads only the scored
    positions. Padded rows of the embedding stay in the softmax: training had them there, and a Hugging Face
    export keeps them.

    On every rank of a process group `evaluate` sees all documents, as if it were alone: `answers` deals them.

    Args:
        gpt: the model; put into evaluation mode.
        tokenizer: the one that the model was trained with.
        answers: collects the answers to requests, from the model or from what is kept of it.
    """

    def __init__(self, gpt: GPT, tokenizer: Tokenizer, answers: Answers | None = None) -> None:
        super().__init__()
        self.gpt = gpt.eval()
        self.tokenizer = tokenizer
        self.answers = answers or Answers()
        self.sizes: dict[tuple[str, ...], tuple[int, int]] = {}
        """By the arguments of a request the UTF-8 bytes and the tokens of what was scored."""
        self._device = next(gpt.parameters()).device
        self.tokens_per_batch = TOKENS_PER_BATCH["cpu" if self._device.type == "cpu" else "cuda"]

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end of text, which also stands in for an empty context."""
        return self.tokenizer.eot

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; nothing in it is read as a special token."""
        return self.tokenizer.encode(string).tolist()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation) the continuation's log-likelihood in nats, and whether greedy
        decoding gives it; 0 and True for an empty one."""
        return self._loglikelihood_tokens([(one.args, *self._encode_pair(*one.args)) for one in requests])

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of a context, or an end of text where it has none, and of what follows it.

        As in the `hf` backend whitespace at the context's end moves over, and both are encoded as one text.
        Where one token would hold the end of one and the beginning of the other they are encoded apart, so
        that each character of the continuation is scored, and scored once.
        """
        given, arguments = context.rstrip(), (context, continuation)
        continuation = context[len(given) :] + continuation
        tokens, whole = self.tok_encode(given), self.tok_encode(given + continuation)
        is_split = whole[: len(tokens)] == tokens
        rest = whole[len(tokens) :] if is_split else self.tok_encode(continuation)
        self.sizes[arguments] = len(continuation.encode()), len(rest)
        return tokens or [self.prefix_token_id], rest

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        windows = [self._windows(context, continuation) for _, context, continuation in requests]
        scores = iter(self.score([window for request in windows for window in request], unit=" requests"))
        of_requests = [[next(scores) for _ in request] for request in windows]
        return [
            (sum((score for score, _ in parts), 0.0), all(greedy for _, greedy in parts))
            for parts in of_requests
        ]

    def _windows(self, context: list[int], continuation: list[int]) -> list[tuple[list[int], list[int]]]:
        """What is scored of a continuation: itself, or of a longer one than block_size windows of it, which
        predict every token once. The first has one token of context, the last is moved left to be full."""
        block_size = self.gpt.config.block_size
        if 0 < len(continuation) <= block_size:
            return [(context, continuation)]
        windows = get_rolling_token_windows(continuation, context[-1], block_size, context_len=1)
        return [make_disjoint_window(window) for window in windows]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of each document, every token predicted once, in windows of block_size.

        A window's first token sees one token of context; the last window is moved left to be full.
        """
        documents = [self.tok_encode(one.args[0]) for one in requests]
        for one, tokens in zip(requests, documents, strict=True):
            self.sizes[one.args] = len(one.args[0].encode()), len(tokens)
        windows = [self._windows([self.prefix_token_id], tokens) for tokens in documents]
        scores = iter(self.score([window for document in windows for window in document], unit=" windows"))
        return [sum((next(scores)[0] for _ in document), 0.0) for document in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """For each (prompt, gen kwargs) what the model writes after the prompt, as the `hf` backend cuts it.

        Raises UserError as `Decoding.of` does.
        """
        return generate_texts(self, requests)

    @cached_property
    def shares(self) -> bool:
        """Whether what requests have in common at their beginnings is computed once; see `why_not_shared`."""
        return why_not_shared(self.gpt) is None

    @torch.inference_mode()
    def score(self, pairs: list[tuple[list[int], list[int]]], unit: str) -> list[tuple[float, bool]]:
        """Score continuations, each context cut from the left to what block_size leaves.

        Args:
            pairs: (context, continuation) token ids: neither is empty, and the second fits into block_size.
            unit: what the bar counts; a pair that is asked for again is not counted again.

        Returns:
            For each pair the continuation's log-likelihood in nats, and whether greedy decoding gives it.
        """
        block_size = self.gpt.config.block_size
        asked = [
            (tuple((context + continuation)[-(block_size + 1) :]), len(continuation))
            for context, continuation in pairs
        ]
        distinct = list(dict.fromkeys(asked))
        inputs = [sequence[:-1] for sequence, _ in distinct]
        if self.shares:
            batches = in_batches(inputs, self.tokens_per_batch)
        else:
            batches = list(self.batches([len(tokens) for tokens in inputs]))

        def answer(batch: Sequence[int]) -> list[tuple[float, bool]]:
            with FasterLinear():
                return self._score_batch([distinct[i] for i in batch])

        answers = self.answers.collect(distinct, batches, answer, unit)
        return [answers[i] for i in map({one: i for i, one in enumerate(distinct)}.__getitem__, asked)]

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of inputs by their lengths, longest first: memory runs out at the start or not at all."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        start = 0
        while start < len(order):
            size = max(1, self.tokens_per_batch // lengths[order[start]])
            yield order[start : start + size]
            start += size

    def _score_batch(self, asked: Sequence[tuple[Tokens, int]]) -> list[tuple[float, bool]]:
        """Score the last tokens of sequences in one forward pass.

        Args:
            asked: token ids, up to block_size + 1 of them, and how many at their end to score, which are
                fewer.

        Returns:
            For each their log-likelihood in nats, and whether greedy decoding gives them.
        """
        inputs = [sequence[:-1] for sequence, _ in asked]
        lengths = [length for _, length in asked]
        if self.shares:
            row = Row.of(inputs)
            hidden, places = row.hidden(self.gpt, self._device), row.places
        else:
            width = max(map(len, inputs))
            padded = [[*tokens, *[self.tokenizer.eot] * (width - len(tokens))] for tokens in inputs]
            hidden = self.gpt.hidden(torch.tensor(padded, device=self._device)).flatten(0, 1)
            places = [list(range(i * width, i * width + len(tokens))) for i, tokens in enumerate(inputs)]
        scored = [place for of_one, length in zip(places, lengths, strict=True) for place in of_one[-length:]]
        target_ids = [token for sequence, length in asked for token in sequence[-length:]]
        read, rows = torch.tensor(scored, device=self._device).unique(return_inverse=True)
        targets = torch.tensor(target_ids, device=self._device)
        log_likelihoods, greedy = token_scores(self.gpt.lm_head, hidden[read], rows, targets)
        # Summed in double: a document of a thousand tokens would lose the fourth decimal in fp32.
        of_pairs = log_likelihoods.double().cpu().split(lengths)
        hits = greedy.cpu().split(lengths)
        return [(one.sum().item(), bool(hit.all())) for one, hit in zip(of_pairs, hits, strict=True)]
