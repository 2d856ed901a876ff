"""Runs as a table: the row of the scorecard that each belongs to, and whether it counts there."""

from collections.abc import Sequence

import pandas as pd

from model.errors import UserError, did_you_mean

from .blow_ups import find_blow_ups
from .metrics import VAL_BITS, VAL_LOSS, Metric
from .results import GIVEN_WEIGHTS, RunRecord
from .settings import GROUPS

DEFAULT_BASELINE = "vanilla"
# What two runs must share for their difference to be the candidate's doing, beside the fixed settings.
PAIR_KEYS = {
    "init_seed": "init seed",
    "data_seed": "data seed",
    "precision": "precision",
    "model": "model size",
    "tokens": "number of trained tokens",
    "steps": "number of steps",
    "source_fingerprint": "training data",
    "init_fingerprint": "initial weights",
} | {group.name: group.title for group in GROUPS if group.kind == "fixed"}
RATES = {group.name: group.title for group in GROUPS if group.kind == "rate"}
"""What may be a candidate's own: runs that differ in it are subtracted, without a verdict on the design."""
IN_EVERY_NAME = ("precision", "model", "tokenizer", "packing", "backbone")
"""Settings that every row's name says where the runs have several."""
FACTS = (
    "variant", "design_fingerprint", *PAIR_KEYS, "packing", "val_fingerprint", "val_text_fingerprint",
    "parameters", "flops_per_token", "world_size", "step", "skipped_steps", "status", *RATES,
    *(group.name for group in GROUPS if group.kind == "rounding"),
)  # fmt: skip


def tabulate_runs(records: Sequence[RunRecord], baseline: str | None) -> tuple[pd.DataFrame, str]:
    """One row per run, and the baseline's name.

    Columns: the run's facts, its settings by group in words, the `name` of the row it belongs to, whether it
    is of the `baseline`, whether its final loss counts (`counted`), and how it blew up in words (`blow_up`).
    Raises UserError where no run is of the wanted baseline.
    """
    facts = [record.summary | record.settings for record in records]
    table = pd.DataFrame([{key: of_run.get(key) for key in FACTS} for of_run in facts]).assign(
        record=list(records), folder=[str(record.folder) for record in records]
    )
    table["skipped_steps"] = pd.to_numeric(table["skipped_steps"]).fillna(0).astype(int)
    table[VAL_LOSS.name] = [record.val_loss for record in records]
    table[VAL_BITS.name] = [record.val_bits_per_byte for record in records]
    table["evaluated_step"] = [record.evaluated_step for record in records]
    table["tokenizer"] = [record.tokenizer for record in records]
    # Tokens decide the text: an older run gets the text's fingerprint from a newer one with its tokens.
    text = table.groupby("val_fingerprint")["val_text_fingerprint"].transform("first")
    table["val_text"] = text.fillna(table["val_fingerprint"])
    table["given"] = table["status"] == GIVEN_WEIGHTS
    table["counted"] = ((table["status"] == "finished") | table["given"]) & table["val_loss"].notna()
    for seed in ("init_seed", "data_seed"):  # as they are: given weights have none, which makes floats of all
        table[seed] = pd.Series([record.summary.get(seed) for record in records], dtype=object)
    table["packing"] = table["packing"].fillna("concat")
    table["init_fingerprint"] = table["init_fingerprint"].fillna("drawn")
    trained = ~table["given"]
    for group in GROUPS:
        table[group.name] = table[group.name].map(str, na_action="ignore").astype(object)
    for setting in ("precision", "model", "tokenizer", *(group.name for group in GROUPS)):
        table.loc[trained, setting] = table.loc[trained, setting].fillna("unknown")
    table["variant"] += (" of " + table["folder"]).where(table["given"], "")
    table["name"] = name_rows(table)
    baseline = choose_baseline(table, baseline)
    table["baseline"] = (table["name"] == baseline) | (table["variant"] == baseline)
    table["blow_up"] = find_blow_ups(table)
    table["counted"] &= table["blow_up"] == ""
    return table, baseline


def name_rows(table: pd.DataFrame) -> pd.Series:
    """The row of each run: its variant, with what tells it from other runs of it that are no seeds of it."""
    names = table["variant"].copy()
    # A candidate file that was edited between two runs is another design of the same name.
    code = table["design_fingerprint"].fillna("")
    edited = code.groupby(names).transform("nunique") > 1
    names[edited] += " " + code[edited].str[:8]
    trained = ~table["given"]
    for setting in IN_EVERY_NAME:
        if table.loc[trained, setting].nunique() > 1:
            names[trained] += " " + table.loc[trained, setting]
    if table.loc[trained, "init_fingerprint"].nunique() > 1:
        starts = table["init_fingerprint"].map(lambda start: "" if start == "drawn" else f" from {start[:8]}")
        names[trained] += starts[trained]
    for group in GROUPS:
        if group.kind != "rounding" and group.name not in IN_EVERY_NAME:
            several = table[group.name].groupby(names).transform("nunique") > 1
            names[several] += f" {group.title} " + table.loc[several, group.name]
    # The same variant with the same seeds twice is no second seed: such runs get a row each.
    seeds = pd.DataFrame({"name": names, "init": table["init_seed"], "data": table["data_seed"]})
    repeated = names.isin(names[seeds.duplicated()])
    names[repeated] += " [" + table.loc[repeated, "folder"] + "]"
    return names


def choose_baseline(table: pd.DataFrame, wanted: str | None) -> str:
    """The wanted variant or row; by default `vanilla` if a run has it, else the first run's variant.

    Runs of one variant differ in something else: then it is the first run's row.
    """
    names = list(dict.fromkeys([*table["variant"], *table["name"]]))
    if wanted is None and table["variant"].nunique() == 1:
        return table["name"].iloc[0]
    if wanted is None:
        return DEFAULT_BASELINE if DEFAULT_BASELINE in names else names[0]
    if wanted not in names:
        raise UserError(
            f"no run is of the baseline {wanted!r}{did_you_mean(wanted, names)}; the runs given are of "
            f"{', '.join(names)}"
        )
    return wanted


def choose_yardstick(counted: pd.DataFrame) -> Metric:
    """Nats per token; bits per byte where the runs have several tokenizers and all know their bits."""
    several = counted["tokenizer"].nunique() > 1
    return VAL_BITS if several and counted[VAL_BITS.name].notna().all() else VAL_LOSS
