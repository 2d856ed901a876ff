"""Answers on disk until a task's results are written: a killed evaluation does not ask for them again."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from data import Tokenizer
from model import GPT
from model.plug_points import PLUG_POINTS, design_fingerprint, split_name
from training.engine.weights import fingerprint

WRITE_EVERY_S = 2.0
"""How much work a kill costs at most, beside the batch under way: a fast GPU answers many in that time."""
CODE = ("model", "eval/scoring", "eval/harness", "training/samples.py")
"""What of NormLab decides an answer, beside the requests."""


def model_fingerprint(gpt: GPT, tokenizer: Tokenizer) -> str:
    """A hash of all that decides a model's answers: weights, design, code, tokenizer, device and torch.

    Not of the number of ranks, which only deal the same batches, nor of where a design's file lies.
    """
    device = next(gpt.parameters()).device
    is_cpu = device.type == "cpu"
    kind = torch.backends.cpu.get_cpu_capability() if is_cpu else torch.cuda.get_device_name(device)
    shape = asdict(gpt.config)
    names = {plug: (split_name(shape[plug]) or ("", shape[plug]))[1] for plug in PLUG_POINTS}
    facts = [fingerprint(gpt.state_dict()), gpt.training_step, design_fingerprint(gpt.config), shape | names]
    facts += [tokenizer.fingerprint, device.type, kind, torch.__version__]
    digest = hashlib.sha256(repr(facts).encode())
    root = Path(__file__).parents[2]
    for name in CODE:
        place = root / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Keep:
    """Where an evaluation keeps answers, and whose they are.

    Attributes:
        folder: gets a folder for each task that is under way.
        model: the `model_fingerprint` of what answers.
        say: is told what was found, and what cannot be written.
    """

    folder: Path
    model: str
    say: Callable[[str], None]

    def of_task(self, name: str) -> Path:
        """Where the answers to a task's requests are kept."""
        return self.folder / quote(name, safe="")

    def forget(self, name: str) -> None:
        """Remove what is kept of a task, whose results are written."""
        shutil.rmtree(self.of_task(name), ignore_errors=True)
        with suppress(OSError):  # other tasks are under way, or nothing was ever kept
            self.folder.rmdir()


class KeptAnswers:
    """The answers to one set of requests on disk, by batch.

    Each rank adds to a file of its own, `HASH.rank0.jsonl`, with a line `[batch, answers]` for each batch. A
    kill may cut the last line short, which then counts as not there. JSON holds a float as it is, bit for
    bit. A file that cannot be read or written is named, and the evaluation goes on without.

    Args:
        keep: where.
        task: whose requests they are.
        asked: a hash of the model, the requests and the batches.
        rank: this process's.
    """

    def __init__(self, keep: Keep, task: str, asked: str, rank: int) -> None:
        self._folder = keep.of_task(task)
        self._asked = asked[:32]
        self._file = self._folder / f"{self._asked}.rank{rank}.jsonl"
        self._say = keep.say
        self._lines: list[str] = []
        self._written_at = time.monotonic()
        self._can_write = True

    def read(self, sizes: Sequence[int]) -> dict[int, list[Any]]:
        """The answers by batch, for the batches that are there whole.

        Args:
            sizes: of each batch the number of its requests.
        """
        found: dict[int, list[Any]] = {}
        for file in sorted(self._folder.glob(f"{self._asked}.rank*.jsonl")):
            try:
                lines = file.read_bytes().split(b"\n")
            except OSError as error:
                self._say(f"what {file} keeps cannot be read, and is asked again: {error}")
                continue
            for line in lines:
                with suppress(ValueError, TypeError):  # cut short
                    batch, answers = json.loads(line)
                    if batch in range(len(sizes)) and len(answers) == sizes[batch]:
                        found[batch] = [tuple(one) if isinstance(one, list) else one for one in answers]
        return found

    def add(self, batch: int, answers: Sequence[Any]) -> None:
        """Keep the answers to a batch; they are written with others, a few seconds later at most."""
        self._lines.append(json.dumps([batch, list(answers)]))
        if time.monotonic() - self._written_at >= WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write what was added, for a process that may be killed, not for a machine that may lose power."""
        if self._lines and self._can_write:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with self._file.open("ab") as file:  # on a line of its own, if the last one was cut short
                    file.write("\n".join(["", *self._lines, ""]).encode())
            except OSError as error:
                self._can_write = False
                self._say(f"answers are not kept, so a killed evaluation would begin anew: {error}")
        self._lines.clear()
        self._written_at = time.monotonic()
