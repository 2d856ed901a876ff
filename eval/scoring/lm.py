"""Our GPT as a model of lm-eval, with the log-likelihoods that its `hf` backend gives the same weights.

Two exceptions: a context of whitespace alone is empty, as all of it moves into the continuation (lm-eval
0.4.13 scores that from the wrong place), and a continuation longer than the block is scored in windows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from data import Tokenizer
from model import GPT

from ..harness.generation import generate_texts
from .answers import Answers

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}
"""Padded input tokens per forward pass, by device: on a CPU larger batches only add padding."""
POSITIONS_PER_HEAD_CALL = 2048
"""Scored positions whose logits are in memory at once: 0.4 GB in fp32 at GPT-2's vocabulary."""


class NormLabLM(TemplateLM):
    """Scores continuations and documents with a GPT where it lies, in the precision it has.

    Requests are sorted by length and padded on the right, which causal attention with absolute positions does
    not see, and the head reads only the scored positions. Padded rows of the embedding stay in the softmax:
    training had them there, and a Hugging Face export keeps them.

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

    @torch.inference_mode()
    def score(self, pairs: list[tuple[list[int], list[int]]], unit: str) -> list[tuple[float, bool]]:
        """Score continuations, each context cut from the left to what block_size leaves.

        Args:
            pairs: (context, continuation) token ids: neither is empty, and the second fits into block_size.
            unit: what the bar counts.

        Returns:
            For each pair the continuation's log-likelihood in nats, and whether greedy decoding gives it.
        """
        block_size = self.gpt.config.block_size
        sequences = [(context + continuation)[-(block_size + 1) :] for context, continuation in pairs]
        lengths = [len(continuation) for _, continuation in pairs]

        def answer(batch: Sequence[int]) -> list[tuple[float, bool]]:
            return self._score_batch([sequences[i] for i in batch], [lengths[i] for i in batch])

        return self.answers.collect(
            pairs, list(self.batches([len(sequence) - 1 for sequence in sequences])), answer, unit
        )

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of inputs by their lengths, longest first: memory runs out at the start or not at all."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        start = 0
        while start < len(order):
            size = max(1, self.tokens_per_batch // lengths[order[start]])
            yield order[start : start + size]
            start += size

    def _score_batch(self, sequences: list[list[int]], lengths: list[int]) -> list[tuple[float, bool]]:
        """Score the last `lengths[i]` tokens of each sequence in one forward pass.

        Args:
            sequences: token ids, up to block_size + 1 of them.
            lengths: how many at the end to score, less than the sequence has.

        Returns:
            For each sequence their log-likelihood in nats, and whether greedy decoding gives them.
        """
        width = max(len(sequence) for sequence in sequences) - 1
        padded = [s[:-1] + [self.tokenizer.eot] * (width + 1 - len(s)) for s in sequences]
        inputs = torch.tensor(padded, device=self._device)
        rows: list[int] = []
        columns: list[int] = []
        target_ids: list[int] = []
        for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
            rows += [row] * length
            columns += range(len(sequence) - 1 - length, len(sequence) - 1)
            target_ids += sequence[-length:]
        targets = torch.tensor(target_ids, device=self._device)
        hidden = self.gpt.hidden(inputs)[rows, columns]
        losses, greedy = [], []
        for some, their_targets in zip(
            hidden.split(POSITIONS_PER_HEAD_CALL), targets.split(POSITIONS_PER_HEAD_CALL), strict=True
        ):
            logits = self.gpt.lm_head(some).float()
            losses.append(F.cross_entropy(logits, their_targets, reduction="none"))
            greedy.append(logits.argmax(dim=-1) == their_targets)
        # Summed in double: a document of a thousand tokens would lose the fourth decimal in fp32.
        losses_by_pair = torch.cat(losses).double().cpu().split(lengths)
        greedy_by_pair = torch.cat(greedy).cpu().split(lengths)
        return [
            (-loss.sum().item(), bool(hit.all()))
            for loss, hit in zip(losses_by_pair, greedy_by_pair, strict=True)
        ]
