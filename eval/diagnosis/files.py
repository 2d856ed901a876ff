"""diagnosis.parquet of a checkpoint: writing, reading, and as text."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.files import write_whole
from training.run.reader import evaluation_folder, reading

if TYPE_CHECKING:
    import pandas as pd

    from .measures import Diagnosis

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("layer", pa.int32()),
        ("layer_2", pa.int32()),
        ("part", pa.string()),
        ("value", pa.float64()),
    ]
)
FACTS = b"normlab"
"""The key of the file's metadata with what was measured on, and what could not be, as JSON."""
COLUMNS = {
    ("layer_drop", ""): "left out",
    ("layer_swap", ""): "swapped",
    ("block_influence", ""): "influence",
    ("lens_kl", ""): "lens KL",
    ("effective_rank", ""): "eff. rank",
    ("rank_collapse", ""): "rest",
    ("token_cosine", ""): "token cos",
}
"""The printed table's columns by name and part of the value; a branch left out has one of its own."""
WHOLE = {
    ("loss", ""): "loss",
    ("quant_gap", "per_tensor"): "8 bits, a scale for all tokens",
    ("quant_gap", "per_token"): "8 bits, a scale for each token",
    ("effective_depth", "lens"): "layers until the logit lens agrees",
    ("effective_depth", "layer_drop"): "layers that count",
}
"""Likewise of the values of the whole model, a line each."""


def diagnosis_file(run_dir: Path, step: int) -> Path:
    """Where the diagnosis of a run's checkpoint lies."""
    return evaluation_folder(run_dir, step) / "diagnosis.parquet"


def write_diagnosis(path: Path, found: "Diagnosis", facts: Mapping[str, Any]) -> None:
    """Write the rows, with `facts` and the notes in the file's metadata."""
    table = pa.Table.from_pylist([row._asdict() for row in found.rows], schema=SCHEMA)
    kept = json.dumps({**facts, "notes": found.notes()})
    write_whole(path, partial(pq.write_table, table.replace_schema_metadata({FACTS: kept})))


def read_facts(path: Path) -> dict[str, Any] | None:
    """What a diagnosis was measured on, and its `notes`; None where there is none."""
    with reading(path):
        return json.loads(pq.read_schema(path).metadata[FACTS]) if path.is_file() else None


def format_diagnosis(table: "pd.DataFrame") -> str:
    """A line for each layer, then one for each value of the whole model; losses are in nats per token."""
    single = table[table["layer_2"].isna() | (table["name"] == "layer_swap")]
    values = {
        (row.name, row.part, -1 if row.layer != row.layer else int(row.layer)): row.value
        for row in single.itertuples(index=False)
    }
    branches = {key[:2]: f"no {key[1]}" for key in values if key[0] == "layer_drop" and key[1]}
    dropped = ("layer_drop", "")
    ordered = {dropped: COLUMNS[dropped]} | branches | COLUMNS
    titles = {key: title for key, title in ordered.items() if any(of[:2] == key for of in values)}
    layers = sorted({layer for *_, layer in values if layer >= 0})
    texts = [["layer", *titles.values()]] if layers else []
    texts += [[str(layer), *(_cell(key[0], values.get((*key, layer))) for key in titles)] for layer in layers]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = ["  ".join(map(str.rjust, of_line, widths)) for of_line in texts]
    width = max(map(len, WHOLE.values()))
    for key, title in WHOLE.items():
        if (value := values.get((*key, -1))) is not None:
            lines.append(f"{title:<{width}}{_cell(key[0], value):>10}")
    return "\n".join(lines)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in ("layer_drop", "layer_swap", "quant_gap"):
        return f"{value:+.4f}"
    if name == "effective_depth":
        return f"{value:.0f}"
    return f"{value:.1f}" if name == "effective_rank" else f"{value:.4f}"
