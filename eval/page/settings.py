"""How the runs were configured: their designs, the keys in which they differ, and those that all share."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from model import DESIGN_KEYS, VARIANTS, GPTConfig
from training.run.reader import read_recipe

from ..evidence.comparison import Scorecard
from ..evidence.grouping import PAIR_KEYS
from ..evidence.settings import as_text, group_of, resolved_keys
from .blocks import Section, Sentences, Table
from .runs import baseline_first

CONSEQUENCES = {
    "fixed": "not compared where it differs",
    "rate": "no verdict where it differs",
    "rounding": "compared; adds rounding noise",
}
"""By the kind of a setting, what follows for a comparison."""
FACTS = {
    **{key: (PAIR_KEYS[key], "fixed") for key in ("model", "precision", "steps", "tokens")},
    "tokenizer": ("tokenizer", "fixed"),
    "source_fingerprint": ("training data", "fixed"),
    "val_text": ("validation text", "fixed"),
    "init_fingerprint": ("initial weights", "fixed"),
    "world_size": ("number of processes", "rounding"),
}
"""What summary.json says of a run's settings: the columns of the scorecard's runs, their titles and kinds."""
SAID_BY_FACTS = ("model.n_layer", "model.n_head", "model.n_embd", "train.steps", "data.tokenizer")
NAMES = ("tracking.",)
"""Keys that name a run and set nothing."""
FINGERPRINT = 12
"""Characters of a fingerprint that tell it from others."""


def settings_section(card: Scorecard) -> Section:
    """The designs, and a table of the keys that differ between the runs: a column per group of like runs."""
    settings = settings_by_run(card)
    blocks: list[Table | Sentences] = []
    if len(designs := design_table(card)):
        blocks.append(Table(designs, title="What the designs are"))
    compared = settings[[key for key in settings if kind_of(key)]]
    if len(settings) > 1 and (differing := table_by_group(card, compared)).empty:
        blocks.append(Sentences([f"All {len(settings)} runs are set alike, in all but design and seed."]))
    elif len(settings) > 1:
        note = "Seeds and designs are left out. Runs in one column are set alike in every row."
        blocks.append(Table(differing, title="Settings that differ", note=note))
    free = table_by_group(card, settings[[key for key in settings if not kind_of(key)]])
    if len(free):
        note = "What is validated, saved and read from where changes no number of the training."
        blocks.append(Table(free, title="Differences without an effect on training", note=note))
    return Section("settings", "Differences of configuration", [*blocks])


def shared_settings_section(card: Scorecard) -> Section:
    """Every resolved key that all runs have alike, folded."""
    settings = settings_by_run(card)
    alike = [
        key for key in settings if settings[key].nunique(dropna=False) == 1 and settings[key].notna().all()
    ]
    table = pd.DataFrame({"setting": alike, "value": [settings[key].iloc[0] for key in alike]})
    count = f"What all {len(settings)} runs share" if len(settings) > 1 else "All settings of the run"
    return Section("shared-settings", count, [Table(table)] if alike else [], kind="folded")


def settings_by_run(card: Scorecard) -> pd.DataFrame:
    """Settings as text, a row for each run that was trained here, by its folder; missing where unknown.

    The columns are titles of `FACTS` and resolved keys of recipe and DeepSpeed JSON.
    """
    rows = {}
    for _, run in card.runs[~card.runs["given"]].iterrows():
        facts = {title: _fact(run[key]) for key, (title, _) in FACTS.items()}
        keys = resolved_keys(run["record"].folder)
        rows[run["folder"]] = facts | {
            key: _in_full(value)
            for key, value in keys.items()
            if not key.startswith((*SAID_BY_FACTS, *NAMES))
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype(object)


def table_by_group(card: Scorecard, settings: pd.DataFrame) -> pd.DataFrame:
    """The columns of `settings` in which runs differ, a row each; a column per group of runs alike in all.

    The first row says who is in a group, the last column what follows, where anything does; what a run does
    not have is "-". Empty where all are alike.
    """
    filled = settings.fillna("-")
    differing = [key for key in filled if filled[key].nunique() > 1]
    if not differing:
        return pd.DataFrame()
    names = card.runs.set_index("folder")["name"]
    groups = [(group.index, group[differing].iloc[0]) for _, group in filled.groupby(differing, sort=False)]
    first = card.runs.loc[card.runs["baseline"], "folder"].tolist()
    groups.sort(key=lambda group: not set(first) & set(group[0]))  # the baseline's in front
    table = pd.DataFrame({"setting": ["runs", *differing]})
    for number, (members, values) in enumerate(groups):
        table[_letter(number)] = [_who(names[members], names), *values]
    if any(kinds := [kind_of(key) for key in differing]):
        table["what follows"] = ["", *(CONSEQUENCES[kind] for kind in kinds)]
    return table


def kind_of(key: str) -> str:
    """A setting's kind, as `Group` has it; empty for what has no effect on training."""
    for title, kind in FACTS.values():
        if key == title:
            return kind
    group = group_of(key)
    return group.kind if group else ""


def design_table(card: Scorecard) -> pd.DataFrame:
    """What each variant is made of, as text; empty where no run has a recipe."""
    rows: dict[str, dict[str, str]] = {}
    baseline = set(card.runs.loc[card.runs["baseline"], "variant"])
    for name in baseline_first(card)["name"]:
        run = card.runs[card.runs["name"] == name].iloc[0]
        folder = run["record"].folder
        if run["variant"] in rows or not (folder / "recipe.yaml").is_file():
            continue
        model = read_recipe(folder).get("model") or {}
        design = GPTConfig(**{key: model[key] for key in DESIGN_KEYS if key in model})
        named = VARIANTS.get(run["variant"])
        rows[run["variant"]] = {
            "design": run["variant"] + (" (baseline)" if run["variant"] in baseline else ""),
            "norm": _part(design.norm, design.norm_options),
            "block": _part(design.block, design.block_options),
            "topology": _part(design.topology, design.topology_options),
            "norm of queries and keys": design.qk_norm,
            "source": named.source if named else "the run's own file" if run["design_fingerprint"] else "-",
        }
    table = pd.DataFrame(rows.values())
    plain = {"topology": "chain", "norm of queries and keys": "none"}  # GPT-2's, and most designs'
    return table.drop(
        columns=[key for key, usual in plain.items() if len(table) and (table[key] == usual).all()]
    )


def _part(name: str, options: Mapping[str, Any]) -> str:
    given = ", ".join(f"{key}={as_text(value)}" for key, value in options.items())
    return f"{name} ({given})" if given else name


def _who(members: pd.Series, names: pd.Series) -> str:
    """The rows that a group has runs of, and how many where it has not all of a row's."""
    parts = []
    for name, count in members.value_counts(sort=False).items():
        whole = int((names == name).sum())
        parts.append(str(name) if count == whole else f"{name} ({count} of {whole} runs)")
    return ", ".join(parts)


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"group {number + 1}"


def _fact(value: Any) -> str | None:
    """A fact as text: numbers with separators, no more of a fingerprint than is needed."""
    if value is None or pd.isna(value):
        return None
    if isinstance(value, int | float):
        return f"{value:,.0f}"
    return value if " " in value else value.rpartition(":")[2][:FINGERPRINT]


def _in_full(value: Any) -> str:
    """A key's value with all its digits: two that differ do not look alike."""
    if isinstance(value, tuple | list):
        return ", ".join(map(_in_full, value)) or "none"
    return f"{value:.15g}" if isinstance(value, float) else as_text(value)
