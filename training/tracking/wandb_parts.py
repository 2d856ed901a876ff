"""The offline files of a W&B run: a start that was killed leaves one that ends within a record."""

from collections.abc import Iterator
from pathlib import Path

BLOCK, FILE_HEADER, CHUNK_HEADER = 32768, 7, 7
FULL, FIRST, LAST = 1, 2, 4
"""W&B's log is LevelDB's: chunks of records in blocks of 32 KiB, each with checksum, length and type."""


def mend_parts(folder: Path, run_id: str) -> None:
    """Cut what earlier starts of the run wrote to whole records, and remove what says of no run.

    `wandb sync` stops at a file that ends within a record, and sends none of the parts after it.

    Args:
        folder: W&B's, with a folder for each start.
        run_id: the run's; no process may be writing it.
    """
    for part in folder.glob(f"offline-run-*-{run_id}*/run-{run_id}.wandb"):
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

        content = part.read_bytes()
        names_run, end = False, FILE_HEADER
        for record, record_end in whole_records(content):
            names_run = names_run or Record.FromString(record).HasField("run")
            end = record_end
        if not names_run:
            part.unlink()
        elif end < len(content):
            with open(part, "r+b") as file:
                file.truncate(end)


def unsent_parts(folder: Path, run_id: str) -> list[Path]:
    """The offline files of the run that `wandb sync` has not sent; it leaves a mark beside those it has."""
    files = sorted(folder.glob(f"offline-run-*-{run_id}*/run-{run_id}.wandb"))
    return [file for file in files if not file.with_name(f"{file.name}.synced").exists()]


def whole_records(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Each record of a W&B file that is whole, and where it ends."""
    at, record = FILE_HEADER, b""
    while at + CHUNK_HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < CHUNK_HEADER:  # too little for a chunk: zeros
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        chunk = content[at + CHUNK_HEADER : at + CHUNK_HEADER + length]
        at += CHUNK_HEADER + length
        if at > len(content) or kind == 0:
            return
        record = chunk if kind in (FULL, FIRST) else record + chunk
        if kind in (FULL, LAST):
            yield record, at
