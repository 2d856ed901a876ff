"""diagnostics.parquet: one row for each step, name, layer and part."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.files import write_whole

from ..run.reader import reading

FILE = "diagnostics.parquet"
"""Its name in a run folder."""
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("tokens", pa.int64()),
        ("name", pa.string()),
        ("layer", pa.int32()),
        ("part", pa.string()),
        ("value", pa.float64()),
    ]
)


class Row(NamedTuple):
    """One value of one step.

    Attributes:
        name: what was measured; docs/diagnostics.md defines each.
        layer: l for a value of block l or of the stream that enters it, both from 0; the number of layers for
            what leaves the last block.
        part: of a block, such as attn or mlp; empty for the block as a whole and for the stream.
        value: what came out.
    """

    name: str
    layer: int
    part: str
    value: float


def read_diagnostics(run_dir: Path) -> pa.Table:
    """A run's diagnostics in columns of `SCHEMA`, empty where it has none.

    Raises UserError where the file is damaged.
    """
    path = run_dir / FILE
    with reading(path):
        return pq.read_table(path, schema=SCHEMA) if path.is_file() else SCHEMA.empty_table()


def add_rows(run_dir: Path, step: int, tokens: int, rows: Sequence[Row]) -> None:
    """Add the rows of a step, measured after so many training tokens; earlier ones of that step go."""
    before = read_diagnostics(run_dir)
    table = pa.concat_tables([before.filter(pc.field("step") != step), _table_of(step, tokens, rows)])
    _write(run_dir, table)


def keep_until(run_dir: Path, step: int) -> None:
    """Drop what was measured after `step`: a resumed run makes these steps again."""
    if (run_dir / FILE).is_file():
        _write(run_dir, read_diagnostics(run_dir).filter(pc.field("step") <= step))


def _table_of(step: int, tokens: int, rows: Iterable[Row]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"step": step, "tokens": tokens, **row._asdict()} for row in rows], schema=SCHEMA
    )


def _write(run_dir: Path, table: pa.Table) -> None:
    write_whole(run_dir / FILE, partial(pq.write_table, table))
