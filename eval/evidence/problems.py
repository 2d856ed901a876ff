"""What a reader must know before believing a difference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from training.divergence.losses import WINDOW

from .grouping import PAIR_KEYS, RATES
from .results import GIVEN_WEIGHTS, RunRecord
from .settings import GROUPS

NOT_ALONE = "a difference between them is not the design's alone"
ROUNDING = "sums are rounded in another order, which adds a little noise"
SETTINGS = {
    **{key: (title, NOT_ALONE) for key, title in {**PAIR_KEYS, **RATES}.items() if not key.endswith("_seed")},
    "steps": ("number of steps", "the batch size or the budget differs"),
    "tokenizer": (
        "tokenizer",
        "losses in nats per token cannot be compared, in bits per byte they can where the validation text is "
        "the same; as many tokens are not as much text",
    ),
    "val_text": ("validation set", "losses on them cannot be compared"),
    "evaluated_step": (
        "step of the checkpoints that tasks were scored at",
        "their scores are of models that were trained for other lengths",
    ),
    "world_size": ("number of processes", ROUNDING),
    **{group.name: (group.title, ROUNDING) for group in GROUPS if group.kind == "rounding"},
}
"""Settings that should be alike in all runs: what they are called, and what follows where they are not."""
BUDGET = 0.01
"""The share by which a design may have more parameters or FLOPs than the baseline without a word."""


@dataclass(frozen=True)
class Unlike:
    """A setting that should be alike.

    Attributes:
        title: what it is called.
        who: for each value, it and the rows that have it.
        consequence: what follows.
    """

    title: str
    who: list[str]
    consequence: str

    def sentence(self) -> str:
        """All of it, without a full stop."""
        return f"Not the same {self.title} ({'; '.join(self.who)}): {self.consequence}"


def find_floors(runs: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Losses, in nats per token, of models that know nothing (uniform) or token frequencies only (unigram).

    By tokenizer, of those whose runs have them.
    """
    return {
        record.tokenizer: record.summary["floors"]
        for record in runs["record"]
        if record.summary.get("floors")
    }


def find_problems(table: pd.DataFrame, rows: pd.DataFrame, losses: pd.DataFrame, baseline: str) -> list[str]:
    """What a reader must know before believing a difference, one sentence each."""
    problems = [f"{unlike.sentence()}." for unlike in unlike_settings(table)]
    for row in rows.itertuples():
        if row.status not in ("finished", GIVEN_WEIGHTS):
            problems.append(f"{row.name}: {row.status}; only finished runs count in means and differences.")
        if lone := describe_lone_runs(row, rows, losses, baseline):
            problems.append(f"{lone}.")
    problems += [f"{problem}." for problem in budget_problems(rows)]
    for run in table.itertuples():
        if run.blow_up:
            problems.append(f"{run.name} ({run.folder}) {run.blow_up}: it counts as a failure.")
        problems += [f"{run.name} ({run.folder}) {said}." for said in run_problems(run.record).values()]
    return problems


def unlike_settings(table: pd.DataFrame) -> list[Unlike]:
    """The settings that should be alike in all finished runs of `tabulate_runs`, and are not."""
    finished = table[table["counted"]]
    trained = finished[~finished["given"]]
    found = []
    for key, (title, consequence) in SETTINGS.items():
        compared = finished if key in ("tokenizer", "val_text") else trained
        if key == "evaluated_step":  # a run without scores has none that differ
            compared = compared[compared[key].notna()]
        groups = compared.groupby(key, sort=False, dropna=False)["name"].unique()
        if len(groups) > 1:
            who = [f"{_short(value)} in {', '.join(names)}" for value, names in groups.items()]
            found.append(Unlike(title, who, consequence))
    return found


def describe_lone_runs(row: Any, rows: pd.DataFrame, losses: pd.DataFrame, baseline: str) -> str:
    """How many of a row's finished runs have no partner, where some have; empty where all have."""
    if rows.loc[rows["baseline"], "given"].any() or not row.seeds:
        return ""
    paired = losses.loc[row.name, "seeds"]
    if not paired < row.seeds:
        return ""
    return (
        f"{row.name}: only {paired:.0f} of {row.seeds} finished runs have a {baseline} partner with the same "
        "seeds and setting; the difference is over those"
    )


def budget_problems(rows: pd.DataFrame) -> list[str]:
    """Designs that are larger or dearer than the baseline."""
    problems = []
    its = rows[rows["baseline"]]
    for key, title in (("parameters", "parameters"), ("flops_per_token", "FLOPs per token")):
        if its.empty or not its[key].iloc[0]:
            continue
        for row in rows[~rows["baseline"] & ~rows["given"]].itertuples():
            more = (getattr(row, key) or its[key].iloc[0]) / its[key].iloc[0] - 1
            if more > BUDGET:
                problems.append(
                    f"{row.name} has {more:.1%} more {title} than {its['name'].iloc[0]}: a gain may be the "
                    "size's, so compare it with a baseline of as many"
                )
    return problems


def run_problems(run: RunRecord) -> dict[str, str]:
    """What must be known of a run, in words that follow its name, by what it is about."""
    problems = {}
    unigram = (run.summary.get("floors") or {}).get("unigram")
    if unigram is not None and run.val_loss >= unigram:
        problems["floor"] = (
            f"does not beat the unigram model: {run.val_loss:.3f} against {unigram:.3f} nats per token"
        )
    if run.summary["status"] == GIVEN_WEIGHTS:
        problems["weights"] = (
            "holds weights that were not trained here: on what text, how long and from which seed is not "
            "known, and the validation text may have been in it"
        )
    if start := run.summary.get("init_fingerprint"):
        problems["start"] = (
            f"began from given weights, {run.summary.get('init_from')} ({start[:12]}), not from drawn ones"
        )
    if run.summary.get("skipped_steps"):
        problems["skipped"] = f"skipped {run.summary['skipped_steps']} steps"
    if rollbacks := run.summary.get("rollbacks"):
        problems["rollbacks"] = (
            f"went back {rollbacks} time{'s' if rollbacks > 1 else ''} after a divergence, and passed over "
            f"{run.summary['passed_batches']} batches that others were trained on"
        )
    if explosions := run.summary.get("explosions"):
        problems["explosions"] = (
            f"lost what it had learnt {explosions} time{'s' if explosions > 1 else ''}: its training loss "
            f"rose and stayed up for {WINDOW} steps"
        )
    if run.summary.get("preflight") == "skipped":
        problems["preflight"] = "was trained without the pre-flight check (--skip_preflight)"
    if run.summary.get("mixes_tokens"):
        problems["mixing"] = "mixes tokens outside attention, where data.document_mask does not reach"
    if (own := run.summary.get("candidate_overrides")) is not None:
        problems["overrides"] = describe_overrides(own)
    if run.limit is not None:
        problems["limit"] = f"had its tasks scored with a limit of {run.limit:g}, not on all items"
    if run.evaluated_step is not None and run.evaluated_step != run.summary.get("step"):
        problems["step"] = f"had its tasks scored at step {run.evaluated_step}, not at its last one"
    if broken := run.broken_metrics:
        problems["lines"] = f"has metrics with gaps: {broken}"
    if changes := run.summary.get("recipe_changes"):
        listed = ", ".join(
            f"{one['key']} {one['now']} for {one['before']} from step {one['step']}" for one in changes
        )
        problems["changed"] = f"was changed under way: {listed}"
    return problems


def describe_overrides(overrides: Mapping[str, Any]) -> str:
    """What a run did with its candidate's CONFIG_OVERRIDES, as summary.json says it."""
    given, applied, instead = (overrides[key] for key in ("given", "applied", "instead_of"))
    parts = []
    if applied:
        before = {key: "none" if value is None else f"{value:g}" for key, value in instead.items()}
        listed = ", ".join(f"{key} {value:g} for {before[key]}" for key, value in applied.items())
        parts.append(f"was trained with settings of its candidate's own: {listed}")
    if ignored := {key: value for key, value in given.items() if key not in applied}:
        listed = ", ".join(f"{key} {value:g}" for key, value in ignored.items())
        parts.append(f"was trained without its candidate's own {listed}")
    return "; ".join(parts)


def _short(value: Any) -> str:
    if pd.isna(value):  # a run from before there was the setting
        return "unknown"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if value == int(value) else f"{value:g}"
    text = str(value)
    return text if " " in text else text[:20]  # a fingerprint needs no more
