"""The `data` section of a recipe."""

from dataclasses import dataclass


@dataclass
class DataConfig:
    """Where the documents come from and in what order they are read.

    Args:
        source: `sample` (English prose made from the installed packages, no download), a hub id such as
            `HuggingFaceFW/fineweb`, or a file, folder or glob of .parquet, .jsonl, .jsonl.gz or .jsonl.zst
            files.
        subset: The hub's name for a part of the source, such as `sample-10BT`.
        revision: The hub's commit, branch or tag of the source; the newest when left out.
        split: The split to train on.
        text_column: The column that holds a document's text.
        validation_source: File, folder or glob of held-out documents, or `sample`. When left out, `sample`
            has a part of its own and any other source reserves its last shards, which training then never
            reads.
        validation_tokens: At most this many validation tokens, in whole documents. Reserved shards are never
            more than a tenth of the source's.
        lanes: How many lanes the stream is cut into. A run keeps its lanes for life; its world size must
            divide them.
        seed: Decides the order of the documents and nothing else.
    """

    source: str = "sample"
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    text_column: str = "text"
    validation_source: str | None = None
    validation_tokens: int = 10_485_760
    lanes: int = 64
    seed: int = 1234

    def __post_init__(self) -> None:
        for key in ("source", "split", "text_column"):
            if not getattr(self, key):
                raise ValueError(f"data.{key} is empty: it must name something.")
        for key, lowest in (("validation_tokens", 1), ("lanes", 1), ("seed", 0)):
            value = getattr(self, key)
            if value < lowest:
                raise ValueError(f"data.{key} is {value}: it must be {lowest} or more.")
