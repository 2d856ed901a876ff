"""The `data` section of a recipe."""

from dataclasses import dataclass
from typing import Literal

from model.errors import UserError

MOST_LANES = 64
"""So many lanes a source is cut into that has the shards for them, where no number is asked for."""


@dataclass(frozen=True)
class DataConfig:
    """Where the documents come from, how they become tokens, and in what order they are read.

    Args:
        source: `sample` (English prose made from the installed packages, no download), a hub id such as
            `HuggingFaceFW/fineweb`, a file, folder, glob or URL of .parquet or .jsonl (also .gz, .zst, .xz),
            or token shards (.bin: nanoGPT's, llm.c's, or a folder of scripts/tokenize_data.py).
            `hf://datasets/OWNER/NAME/PATTERN`, with `@REVISION` behind the name, is a hub id with `files`.
        files: Which files of the source are read, by their names below the hub's data set, the folder or the
            URL that `source` is: `*`, `?`, `**`, and braces, `shard_{00000..00129}.parquet` for a range. No
            other file is opened, and `split` does not count. All of the source when left out.
        subset: The hub's name for a part of the source, such as `sample-10BT`.
        revision: The hub's commit, branch or tag of the source; the newest when left out.
        split: The split to train on.
        text_column: The column that holds a document's text.
        tokenizer: `gpt2`, `bytes` (257 symbols), a tiktoken encoding such as `cl100k_base`, or the path of a
            Hugging Face tokenizer.json.
        validation_source: Held-out documents, in any form that `source` takes. When left out, `sample` has a
            part of its own and any other source reserves its last documents, which training then never reads.
        validation_revision: The hub's commit, branch or tag of `validation_source`; the newest when left out.
        validation_tokens: At most this many validation tokens, in whole documents; counted in GPT-2's, so
            that every tokenizer has the same documents. What is reserved is at most a tenth of the source's
            documents, and at least one.
        packing: `concat` fills every block and cuts documents at its end; `best_fit` keeps documents whole
            where they fit and fills the rest with targets that are not learnt.
        document_mask: Attention and loss stay within a document.
        lanes: How many lanes the stream is cut into. A run keeps its lanes for life; its world size must
            divide them. The largest power of two that the source has shards for, at most 64, when left out.
        shuffle_window: So many shards of a lane are shuffled together. Each lane holds that many in memory.
        seed: Decides the order of the documents and nothing else.
        workers: Processes per rank that read and tokenise ahead of the training loop; 0 does it in the loop.
        prefetch: Sequences that a worker keeps ready, at most.
        cache_dir: Folder that keeps the tokens of every shard that was read, for later epochs, other runs and
            resumes.
        on_bad_document: What is done with a document that is empty, damaged or too long: `skip` leaves it out
            and counts it, `stop` ends the run.
        max_document_bytes: A longer document counts as bad.
        timeout_s: Seconds that a remote source may fail, hang or give less than 1 kB per second, before the
            run saves and stops.
    """

    source: str = "sample"
    files: str | None = None
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    text_column: str = "text"
    tokenizer: str = "gpt2"
    validation_source: str | None = None
    validation_revision: str | None = None
    validation_tokens: int = 10_485_760
    packing: Literal["concat", "best_fit"] = "concat"
    document_mask: bool = False
    lanes: int | None = None
    shuffle_window: int = 1
    seed: int = 1234
    workers: int = 1
    prefetch: int = 1024
    cache_dir: str | None = None
    on_bad_document: Literal["skip", "stop"] = "skip"
    max_document_bytes: int = 20_000_000
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for key, given in vars(self).items():
            if given == "":
                raise UserError(f"data.{key} is empty: it must name something, or be left out")
        if self.validation_revision is not None and self.validation_source is None:
            raise UserError(
                f"data.validation_revision is {self.validation_revision!r}, but there is no "
                "data.validation_source: leave it out"
            )
        lowest = {"seed": 0, "workers": 0}
        for key in (
            "validation_tokens",
            "lanes",
            "shuffle_window",
            "seed",
            "workers",
            "prefetch",
            "max_document_bytes",
        ):
            value = getattr(self, key)
            if value is not None and value < lowest.get(key, 1):
                raise UserError(f"data.{key} is {value}: it must be {lowest.get(key, 1)} or more")
        if not 0 < self.timeout_s < float("inf"):
            raise UserError(f"data.timeout_s is {self.timeout_s}: it must be a number of seconds above 0")
