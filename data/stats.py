"""What a source holds, in figures that a researcher must know before trusting it.

    python -m data.stats SOURCE [--data.key value ...] [--documents N] [--workers N] [--json FILE]
    python -m data.stats SOURCE --overlap VALIDATION [...]

Tokens are counted as they are trained on, with the `eot` that closes every document. `padding?` stands beside
a figure that natural text does not reach. In the embedded sample, textbooks, novels and FineWeb the most
common token has a share of 4 to 6 % with GPT-2's tokenizer and 15 to 18 % with `bytes`, where it is the
space, and the longest run is one of 12 and of 81 tokens.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from tqdm import tqdm

from model.errors import UserError, print_error
from model.files import write_json
from model.redaction import redact_output

from .command import SourceParser, at_least, open_with_notes
from .overlap.ngrams import overlap
from .overlap.ngrams import to_text as overlap_to_text
from .parallel import default_workers, in_processes, shard_runs_for
from .sources import BAD_REASONS, BinFiles, Document, Shard, Source, open_validation_source
from .tokenizer import NotTokenizable, Tokenizer

LONG_DOCUMENT_TOKENS = 1024
SUSPICIOUS_SHARE = 0.2
SUSPICIOUS_RUN = 100
SUSPICIOUS_EMPTY_SHARE = 0.01
SAMPLED_RUNS = 64


class TokenRun(NamedTuple):
    """The same token `length` times in a row, in a document of a shard, both counted from 0."""

    length: int
    token: int
    shard: int
    document: int


@dataclass
class Counts:
    """What some documents hold; what all of a source hold is the sum of its parts.

    Attributes:
        text_bytes: UTF-8 bytes of their texts.
        of_token: (vocab_size,) int64: how often each token occurs, `eot` apart.
        of_length: Documents by their number of tokens.
        hashes: 64-bit hashes of the documents.
        longest_run: None where there are no tokens.
    """

    of_token: np.ndarray
    text_bytes: int = 0
    of_length: Counter[int] = field(default_factory=Counter)
    hashes: list[np.ndarray] = field(default_factory=list)
    longest_run: TokenRun | None = None
    bad: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Counts") -> None:
        """Counts the documents of `other` too."""
        self.of_token += other.of_token
        self.text_bytes += other.text_bytes
        self.of_length += other.of_length
        self.hashes += other.hashes
        self.bad += other.bad
        found = [run for run in (self.longest_run, other.longest_run) if run]
        # of runs of one length the first, whichever process was quicker
        self.longest_run = max(found, key=lambda run: (run.length, -run.shard, -run.document), default=None)


def count(documents: Sequence[Document], shard: Shard, source: Source, tokenizer: Tokenizer) -> Counts:
    """The counts of one shard's documents. Raises UserError as `Source.leave_out`."""
    counts = Counts(np.zeros(tokenizer.vocab_size, np.int64))
    tokens, hashes = [], []
    for document in documents:
        if isinstance(document, str):
            text = document.encode()
            try:
                tokens.append(tokenizer.encode_document(document))
            except NotTokenizable:
                source.leave_out(document, [shard], "not_tokenizable")
                counts.bad["not_tokenizable"] += 1
                continue
            hashes.append(xxhash.xxh3_64_intdigest(text))
        else:
            text = tokenizer.decode_bytes(document[:-1])
            hashes.append(xxhash.xxh3_64_intdigest(document.tobytes()))
            tokens.append(document)
        counts.text_bytes += len(text)
    if not tokens:
        return counts
    counts.hashes = [np.array(hashes, np.uint64)]
    lengths = [len(document) for document in tokens]
    counts.of_length = Counter(lengths)
    stream = np.concatenate(tokens)
    counts.of_token = np.bincount(stream, minlength=tokenizer.vocab_size)
    counts.of_token[tokenizer.eot] = 0
    begins = np.concatenate([[0], np.flatnonzero(stream[1:] != stream[:-1]) + 1])
    run_lengths = np.diff(begins, append=len(stream))
    longest = int(run_lengths.argmax())
    counts.longest_run = TokenRun(
        length=int(run_lengths[longest]),
        token=int(stream[begins[longest]]),
        shard=shard.index,
        document=int(np.searchsorted(np.cumsum(lengths), begins[longest], side="right")),
    )
    return counts


def measure(
    source: Source,
    tokenizer: Tokenizer,
    documents: int | None = None,
    workers: int = 1,
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """The figures of a source, as `--json` writes them.

    Memory grows by 8 bytes per document.

    Args:
        source: What to measure.
        tokenizer: Its tokenizer.
        documents: So many at most, from places all over the source; all of them when left out.
        workers: Processes.
        progress: Whether to show a bar.

    Raises:
        UserError: no document was found, or one is bad and `data.on_bad_document` is `stop`.
        OSError: the source cannot be read.
    """

    def count_run(part: tuple[list[Shard], int]) -> Iterator[Counts]:
        run, left = part
        total = Counts(np.zeros(tokenizer.vocab_size, np.int64))
        for shard in run:
            found = source.read(shard)
            total.add(count(found.kept[:left], shard, source, tokenizer))
            total.bad += found.bad
            left -= len(found.kept)
            if left <= 0:
                break
        yield total

    parts = _parts(source, documents, workers)
    total = Counts(np.zeros(tokenizer.vocab_size, np.int64))
    interval = 0.2 if sys.stderr.isatty() else 5.0
    counts_of_runs = in_processes(count_run, parts, workers)
    for counts in tqdm(counts_of_runs, "stats", len(parts), disable=not progress, mininterval=interval):
        total.add(counts)
    return _figures(total, source, tokenizer)


def _parts(source: Source, documents: int | None, workers: int) -> list[tuple[list[Shard], int]]:
    """Runs of shards, and how many documents to take from the beginning of each."""
    all_runs = shard_runs_for(workers, source.shards)
    if documents is None:
        return [(run, sys.maxsize) for run in all_runs]
    rows = sum(shard.rows for shard in source.shards)
    needed = math.ceil(len(all_runs) * documents / rows) if rows else documents
    parts = min(len(all_runs), max(SAMPLED_RUNS, needed), documents)
    share = [documents * (part + 1) // parts - documents * part // parts for part in range(parts)]
    return [(all_runs[part * len(all_runs) // parts], share[part]) for part in range(parts)]


def _figures(total: Counts, source: Source, tokenizer: Tokenizer) -> dict[str, Any]:
    documents = total.of_length.total()
    if documents == 0:
        raise UserError(f"data.source: {source.name} holds no document that is not bad")
    assert total.longest_run is not None
    lengths = np.array(sorted(total.of_length))
    occurrences = np.array([total.of_length[length] for length in lengths])
    tokens = int(lengths @ occurrences)
    is_long = lengths > LONG_DOCUMENT_TOKENS
    common, run = int(total.of_token.argmax()), total.longest_run
    distinct = len(np.unique(np.concatenate(total.hashes)))
    shard = source.shards[run.shard]
    return {
        "source": source.name,
        "tokenizer": tokenizer.name,
        "documents": documents,
        "tokens": tokens,
        "text_bytes": total.text_bytes,
        "bytes_per_token": total.text_bytes / tokens,
        "tokens_per_document": {
            "mean": tokens / documents,
            "median": int(lengths[np.searchsorted(np.cumsum(occurrences), (documents + 1) // 2)]),
            "longest": int(lengths[-1]),
        },
        "longer_than_1024_tokens": {
            "share_of_documents": int(occurrences[is_long].sum()) / documents,
            "share_of_tokens": int(lengths[is_long] @ occurrences[is_long]) / tokens,
        },
        "most_common_token": {
            "id": common,
            "text": tokenizer.decode(np.array([common], tokenizer.dtype)),
            "share_of_tokens": int(total.of_token[common]) / tokens,
        },
        "longest_run": {
            "length": run.length,
            "id": run.token,
            "text": tokenizer.decode(np.array([run.token], tokenizer.dtype)),
            "path": shard.path,
            "group": shard.group,
            "first_row": shard.first_row,
            "document": run.document,
        },
        # only token files have any: text becomes one `eot` per document
        "end_of_text_runs": total.bad["empty"] if isinstance(source, BinFiles) else 0,
        "duplicate_documents": {"count": documents - distinct, "share": 1 - distinct / documents},
        "bad_documents": {reason: total.bad[reason] for reason in BAD_REASONS if total.bad[reason]},
    }


def to_text(figures: dict[str, Any]) -> str:
    """The figures as lines for people."""
    length, long = figures["tokens_per_document"], figures["longer_than_1024_tokens"]
    common, run, copies = figures["most_common_token"], figures["longest_run"], figures["duplicate_documents"]
    is_padded = {
        "most common token": common["share_of_tokens"] > SUSPICIOUS_SHARE,
        "longest run": run["length"] > SUSPICIOUS_RUN,
        "end-of-text runs": figures["end_of_text_runs"] > SUSPICIOUS_EMPTY_SHARE * figures["documents"],
    }
    lines = {
        "documents": f"{figures['documents']:,}",
        "tokens": f"{figures['tokens']:,} ({figures['tokenizer']})",
        "text": f"{figures['text_bytes']:,} bytes, {figures['bytes_per_token']:.3f} per token",
        "tokens per document": f"mean {length['mean']:,.1f}, median {length['median']:,}, "
        f"longest {length['longest']:,}",
        "longer than 1024": f"{long['share_of_documents']:.2%} of documents, "
        f"{long['share_of_tokens']:.2%} of tokens",
        "most common token": f"{common['share_of_tokens']:.2%} is {common['text']!r}",
        "longest run": f"{run['length']:,} times {run['text']!r} (document {run['document']} from row "
        f"{run['first_row']} of part {run['group']} of {run['path']})",
        "end-of-text runs": f"{figures['end_of_text_runs']:,}",
        "duplicates": f"{copies['count']:,} documents, {copies['share']:.2%}",
        "bad documents": ", ".join(f"{n:,} {why}" for why, n in figures["bad_documents"].items()) or "none",
    }
    return "".join(
        f"{name:<21}{line}{'   padding?' if is_padded.get(name) else ''}\n" for name, line in lines.items()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = SourceParser("python -m data.stats", "What a source holds.")
    parser.add_argument(
        "--documents", metavar="N", type=at_least(1), help="so many, from all over the source (default: all)"
    )
    parser.add_argument(
        "--workers", metavar="N", type=at_least(1), default=default_workers(), help="processes"
    )
    parser.add_argument(
        "--overlap",
        metavar="VALIDATION",
        help="what data.validation_source takes: say how much of its documents stands in SOURCE too",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    try:
        options, config = parser.parse(arguments)
        if options.json and not Path(options.json).absolute().parent.is_dir():
            raise UserError(f"--json is {options.json}, but there is no folder to write it to")
        config = replace(config, validation_source=options.overlap)
        source, tokenizer = open_with_notes(config)
        if options.overlap is not None:
            held_out = open_validation_source(config, tokenizer)
            parts = _parts(source, options.documents, options.workers)
            figures = overlap(source, held_out, tokenizer, parts, options.workers, progress=True)
            print(overlap_to_text(figures), end="")
        else:
            figures = measure(source, tokenizer, options.documents, options.workers, progress=True)
            print(to_text(figures), end="")
        if options.json:
            write_json(Path(options.json), figures)
    except (UserError, OSError) as error:
        return print_error(error)
    except KeyboardInterrupt:
        print_error("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    redact_output()
    sys.exit(main())
