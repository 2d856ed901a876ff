"""Documents in, token batches out: sources, GPT-2's tokenizer, lanes, and the fixed validation set."""

from data.config import DataConfig
from data.lanes import Cursor, LaneLoader
from data.sample import SAMPLE_DIR, build_sample
from data.sources import Shard, Source, open_source
from data.tokenizer import EOT, VOCAB_SIZE, encode_document, gpt2_encoding
from data.validation import IGNORED_TARGET, ValidationSet, split_validation

__all__ = [
    "EOT",
    "IGNORED_TARGET",
    "SAMPLE_DIR",
    "VOCAB_SIZE",
    "Cursor",
    "DataConfig",
    "LaneLoader",
    "Shard",
    "Source",
    "ValidationSet",
    "build_sample",
    "encode_document",
    "gpt2_encoding",
    "open_source",
    "split_validation",
]
