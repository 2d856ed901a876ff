"""Documents in, token batches out: sources, tokenizers, lanes, packing, and the fixed validation set."""

from data.config import DataConfig
from data.corpus import Corpus
from data.documents import BAD_REASONS, Documents, Shard, Source
from data.lanes import Cursor, Lane
from data.loader import LaneLoader
from data.packing import IGNORED_TARGET, document_ids, inputs_and_targets
from data.sample import SAMPLE_DIR, build_sample
from data.sources import open_source
from data.tokenizer import Tokenizer, gpt2_encoding, open_tokenizer
from data.validation import ValidationSet, open_data

__all__ = [
    "BAD_REASONS",
    "IGNORED_TARGET",
    "SAMPLE_DIR",
    "Corpus",
    "Cursor",
    "DataConfig",
    "Documents",
    "Lane",
    "LaneLoader",
    "Shard",
    "Source",
    "Tokenizer",
    "ValidationSet",
    "build_sample",
    "document_ids",
    "gpt2_encoding",
    "inputs_and_targets",
    "open_data",
    "open_source",
    "open_tokenizer",
]
