"""What `bench_eval.py` measures: requests of a task, both backends on them, and what they compute."""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pandas as pd
import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import SAMPLE_DIR, build_sample, open_tokenizer
from eval.hf_tokenizer import write_tokenizer
from eval.scoring.answers import Answers
from eval.scoring.lm import NormLabLM
from eval.scoring.products import FasterLinear
from eval.tasks import load_tasks
from model import GPT, GPTConfig, to_hf

COLUMNS = ("task", "requests", "hf per s", "ours per s", "ratio", "same kernels", "bound", "max difference",
           "greedy equal", "hf's batch")  # fmt: skip


class Shape(NamedTuple):
    """What the items of a task look like, in words."""

    choices: int
    context: int
    answer: int
    in_common: int = 0
    """Words at the beginning of all answers that are the same."""


MADE_UP = {
    "wikitext": Shape(1, 0, 2000),
    "lambada_openai": Shape(1, 68, 1),
    "arc_easy": Shape(4, 22, 4),
    "hellaswag": Shape(4, 25, 11),
    "piqa": Shape(2, 11, 18, 6),
    "winogrande": Shape(2, 14, 5),
}


def made_up(name: str, items: int) -> list[Instance]:
    """Requests with the shape of a task's. The two of `winogrande` differ in the context's last word."""
    texts = pd.read_parquet(build_sample(SAMPLE_DIR) / "validation.parquet")["text"]
    words = cycle(" ".join(texts).split())

    def take(count: int) -> str:
        return " ".join(islice(words, count))

    shape, requests = MADE_UP[name], []
    for item in range(items):
        context, start, answer = take(shape.context), take(shape.in_common), take(shape.answer)
        for _ in range(shape.choices):
            if name == "wikitext":
                requests.append(Instance("loglikelihood_rolling", {}, (answer,), item))
            elif name == "winogrande":
                requests.append(Instance("loglikelihood", {}, (f"{context} {take(1)}", f" {answer}"), item))
            else:
                answer_of_one = " ".join(f" {start} {take(shape.answer - shape.in_common)}".split())
                requests.append(Instance("loglikelihood", {}, (context, f" {answer_of_one}"), item))
    return requests


def requests_of(name: str, items: int, data_dir: str | None) -> list[Instance]:
    """The requests of a task's first items, of a sixteenth of them where they are pages.

    Raises UserError as `load_tasks` does.
    """
    items = max(1, items // 16) if name == "wikitext" else items
    if data_dir is None:
        return made_up(name, items)
    task: Any = load_tasks([name], data_dir)[name]
    task.build_all_requests(limit=items, rank=0, world_size=1)
    return task.instances


class Scores(NamedTuple):
    """What a backend says, and how long it took."""

    values: list[float]
    greedy: list[bool]
    seconds: float


def scores(lm: Any, requests: Sequence[Instance]) -> Scores:
    """One turn of a backend."""
    kind = requests[0].request_type
    started = time.process_time()
    answers = getattr(lm, kind)(list(requests), disable_tqdm=True)
    seconds = time.process_time() - started
    if kind == "loglikelihood_rolling":
        return Scores(answers, [], seconds)
    return Scores([value for value, _ in answers], [greedy for _, greedy in answers], seconds)


class Flops:
    """Of a GPT-2 that only scores.

    Args:
        gpt: the model.
    """

    def __init__(self, gpt: GPT) -> None:
        weights = sum(p.numel() for block in gpt.blocks for p in block.parameters() if p.dim() > 1)
        self.of_token = 2 * weights
        self.of_pair = 4 * gpt.config.n_layer * gpt.config.n_embd  # of a token and one that it sees
        self.of_logits = 2 * gpt.lm_head.weight.numel()

    def of_batch(self, rows: int, width: int) -> int:
        """A padded batch with all logits."""
        pairs = width * (width + 1) // 2
        return rows * (width * (self.of_token + self.of_logits) + pairs * self.of_pair)

    def at_least(self, asked: Sequence[tuple[Sequence[int], int]]) -> int:
        """Sequences, without their last token, and how many logits at the end of each: all that begins alike
        once."""
        tree: dict[tuple[int, int], int] = {}  # from a node and a token to a node
        depths, read = dict[int, int](), set[int]()
        for tokens, count in asked:
            path = [0]
            for token in tokens:
                path.append(tree.setdefault((path[-1], token), len(tree) + 1))
            depths |= {node: depth for depth, node in enumerate(path)}
            read.update(path[-count:])
        seen = sum(depths.values())  # a token sees itself too
        return len(tree) * self.of_token + seen * self.of_pair + len(read) * self.of_logits


@contextmanager
def shapes_of(hf: HFLM) -> Iterator[list[torch.Size]]:
    """The shapes of the batches that the backend computes meanwhile."""
    shapes: list[torch.Size] = []
    plain = hf._model_call

    def call(inps: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shapes.append(inps.shape)
        return plain(inps, *args, **kwargs)

    hf._model_call = call
    yield shapes
    hf._model_call = plain


class Bench:
    """Both backends on one random model.

    Args:
        options: the command line's.
        folder: where the model is exported to.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        shape = {name: getattr(options, name) for name in ("n_layer", "n_head", "n_embd", "block_size")}
        self.gpt, tokenizer = GPT(GPTConfig(**shape)), open_tokenizer("gpt2")
        self.ours = NormLabLM(self.gpt, tokenizer, Answers(partial(tqdm, disable=True)))
        self.ours.tokens_per_batch = options.tokens_per_batch
        started = time.process_time()
        assert self.ours.shares
        self.seconds_of_check = time.process_time() - started
        to_hf(self.gpt, folder, tokenizer.eot)
        write_tokenizer(tokenizer, folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.hf = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu")

    def facts(self) -> str:
        """What holds for all rows of the table."""
        with torch.inference_mode():
            torchs = product_rate()
            with FasterLinear():
                faster = product_rate()
        return (
            f"{torch.get_num_threads()} thread(s), {self.gpt.num_parameters() / 1e6:.0f} million parameters; "
            f"products in fp32: {torchs:.0f} GFLOP/s as torch makes them, {faster:.0f} as ours; "
            f"{self.seconds_of_check:.1f} s per task to find out whether the design may share contexts"
        )

    def row(self, name: str) -> str:
        """Measure one task; its line of the table. Raises UserError as `load_tasks` does."""
        requests = requests_of(name, self.options.items, self.options.eval_data)
        asked = self._asked(requests)
        size = self._choose_batch_size(requests, max(len(tokens) for tokens, _ in asked))
        self.hf.batch_size_per_gpu = size
        with shapes_of(self.hf) as shapes:
            scores(self.hf, requests)
        flops = Flops(self.gpt)
        bound = sum(flops.of_batch(*shape) for shape in shapes) / flops.at_least(asked)
        turns = []
        for _ in range(self.options.rounds):
            theirs, ours = scores(self.hf, requests), scores(self.ours, requests)
            with patch("eval.scoring.lm.FasterLinear", nullcontext):
                turns.append((theirs, ours, scores(self.ours, requests)))
        theirs, ours, _ = turns[-1]
        difference = max(abs(a - b) for a, b in zip(theirs.values, ours.values, strict=True))
        per_s = [len(requests) / statistics.median(turn[i].seconds for turn in turns) for i in (0, 1)]
        ratios = [statistics.median(turn[0].seconds / turn[i].seconds for turn in turns) for i in (1, 2)]
        numbers = [f"{number:.2f}" for number in (*per_s, *ratios, bound)]
        equal = "yes" if theirs.greedy == ours.greedy else "no"
        cells = (name, str(len(requests)), *numbers, f"{difference:.0e}", equal, str(size))
        return f"| {' | '.join(cells)} |"

    def _choose_batch_size(self, requests: Sequence[Instance], longest: int) -> int:
        """Requests per batch under the budget with which `hf` is fastest: all that fit, or fewer."""
        largest = min(len(requests), max(1, self.options.tokens_per_batch // longest))
        seconds = {}
        for size in sorted({largest, max(1, largest // 2), max(1, largest // 4)}):
            self.hf.batch_size_per_gpu = size
            seconds[size] = scores(self.hf, requests).seconds
        return min(seconds, key=seconds.__getitem__)

    def _asked(self, requests: Sequence[Instance]) -> list[tuple[list[int], int]]:
        """What is read for each request, or window of it, and how many logits at its end count."""
        lm, limit, found = self.ours, self.gpt.config.block_size + 1, []
        for one in requests:
            is_document = one.request_type == "loglikelihood_rolling"
            pair = lm._encode_pair(*(("", *one.args) if is_document else one.args))
            found += [((before + rest)[-limit:-1], len(rest)) for before, rest in lm._windows(*pair)]
        return found


def product_rate() -> float:
    """GFLOP/s of GPT-2 small's widest layer."""
    x, weight = torch.randn(1024, 768), torch.randn(3072, 768)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        F.linear(x, weight)
        seconds.append(time.process_time() - started)
    return 2e-9 * len(x) * weight.numel() / min(seconds)
