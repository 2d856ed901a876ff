"""Files of JSON lines for tests, opened and read."""

import json
from collections import Counter
from pathlib import Path

from data import DataConfig
from data.sources import ParquetSource
from data.sources.jsonl import JsonlSource

TEXTS = [f"Text {row} é\u2028\U0001f600." for row in range(2300)]


def lines(texts: list[str], **more: object) -> bytes:
    return "".join(json.dumps({"text": text, **more}) + "\n" for text in texts).encode()


def opened(*paths: Path, **options: object) -> JsonlSource:
    config = DataConfig(source=str(paths[0]), **options)  # type: ignore[arg-type]
    return JsonlSource(config, [str(path) for path in paths])


def documents(source: ParquetSource) -> list[object]:
    return [document for shard in source.shards for document in source.read(shard).kept]


def bad(source: ParquetSource) -> Counter[str]:
    return sum((source.read(shard).bad for shard in source.shards), Counter())
