"""Designs and runs as the page calls them, and the facts of each run."""

import math

import pandas as pd

from ..evidence.comparison import Scorecard
from ..evidence.tables import run_table
from .blocks import Section, Table
from .colours import colours_of


def baseline_first(card: Scorecard) -> pd.DataFrame:
    """The scorecard's rows, the baseline's on top, the others in their order."""
    return card.rows.sort_values("baseline", ascending=False, kind="stable", ignore_index=True)


def design_colours(card: Scorecard) -> dict[str, str]:
    """The colour of each row; where the baseline has several, they share its own.

    In the order of the runs as they were given: a loss that changes changes no colour.
    """
    others = card.runs.loc[~card.runs["baseline"], "name"]
    return dict.fromkeys(card.rows["name"], "var(--c0)") | {
        name: colour for name, colour in colours_of(others, "").items() if name
    }


def run_titles(card: Scorecard) -> dict[str, str]:
    """What each run is called, by its folder, in the scorecard's order: its row, and its seed."""
    several_data_seeds = card.runs["data_seed"].nunique() > 1
    titles = {}
    for name in baseline_first(card)["name"]:
        for run in card.runs[card.runs["name"] == name].itertuples():
            seed = f"{run.init_seed}/{run.data_seed}" if several_data_seeds else run.init_seed
            titles[str(run.folder)] = name if run.given else f"{name}, seed {seed}"
    return titles


def runs_section(card: Scorecard) -> Section:
    """Every design's and every run's facts, folded."""
    by_design = Table(run_table(card).rename(columns={"variant": "design"}), title="By design")
    by_run = Table(fact_table(card), title="By run", note="Speed and duration are the whole run's.")
    return Section("runs", "Facts of each run", [by_design, by_run], kind="folded")


def fact_table(card: Scorecard) -> pd.DataFrame:
    """Every run's facts as text, a row per run."""
    runs = card.runs.set_index("folder", drop=False)
    rows = []
    for folder, title in run_titles(card).items():
        run = runs.loc[folder]
        summary = run["record"].summary
        facts = {
            "run": title,
            "folder": folder,
            "variant": summary["variant"],
            "status": summary["status"],
            "val loss": None if math.isnan(run["val_loss"]) else f"{run['val_loss']:.4f}",
            "bits/byte": None if math.isnan(run["val_bits_per_byte"]) else f"{run['val_bits_per_byte']:.4f}",
            "tokenizer": run["tokenizer"],
            "mode": summary.get("precision"),
            "learning rate": run["record"].settings.get("learning_rate"),
            "init seed": str(summary.get("init_seed", "-")),
            "data seed": str(summary.get("data_seed", "-")),
            "step": summary.get("step"),
            "of": summary.get("steps"),
            "tokens": summary.get("tokens"),
            "skipped steps": summary.get("skipped_steps"),
            "tokens per second": summary.get("tokens_per_s"),
            "wall time": duration(summary.get("wall_time_s")),
            "processes": summary.get("world_size"),
            "model": summary.get("model"),
            "parameters": summary.get("parameters"),
            "best checkpoint": summary.get("best_checkpoint"),
            "last checkpoint": summary.get("last_checkpoint"),
            "validation tokens": summary.get("val_tokens"),
            "validation set": str(summary.get("val_fingerprint", "-"))[:12],
        }
        rows.append({title: _text(fact) for title, fact in facts.items()})
    return pd.DataFrame(rows).fillna("-")


def duration(seconds: float | None) -> str | None:
    """123.4 as "2 min 03 s"; None for an unknown one."""
    if seconds is None or math.isnan(seconds):
        return None
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _text(value: float | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if isinstance(value, int | float) else value
