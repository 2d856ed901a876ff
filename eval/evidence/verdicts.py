"""What a comparison means, in words: verdicts, headline, and what to know before believing either."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from .intervals import holm
from .results import GIVEN_WEIGHTS, RunRecord

# Settings that should be alike in all runs: what they are called, and what follows where they are not.
SETTINGS = {
    "precision": ("precision", "a difference between them is not the variant's alone"),
    "model": ("model size", "a difference between them is not the variant's alone"),
    "tokens": ("number of trained tokens", "a difference between them is not the variant's alone"),
    "steps": ("number of steps", "the batch size or the budget differs"),
    "tokenizer": (
        "tokenizer",
        "losses in nats per token cannot be compared, in bits per byte they can where the validation text is "
        "the same; as many tokens are not as much text",
    ),
    "val_text": ("validation set", "losses on them cannot be compared"),
    "learning_rate": ("learning rate", "a difference between them is not the design's alone"),
    "weight_decay": ("weight decay", "a difference between them is not the design's alone"),
    "gradient_clipping": ("gradient clipping", "a difference between them is not the design's alone"),
    "schedule": ("schedule", "a difference between them is not the design's alone"),
    "backbone": ("fixed parts of the model", "a difference between them is not the design's alone"),
    "init_fingerprint": ("initial weights", "a difference between them is not the design's alone"),
    "world_size": ("number of processes", "sums are rounded in another order, which adds a little noise"),
}


def describe_status(group: pd.DataFrame) -> str:
    """The status of a row's runs: "finished", "running at step 100 of 200", "2 finished, 1 diverged"."""
    if len(group) > 1:
        counts = group["status"].value_counts()
        return (
            str(counts.index[0])
            if len(counts) == 1
            else ", ".join(f"{n} {state}" for state, n in counts.items())
        )
    summary = group["record"].iloc[0].summary
    status = summary["status"]
    if status in ("finished", GIVEN_WEIGHTS):
        return status if group["counted"].iloc[0] else f"{status} without a validation loss"
    return f"{status} at step {summary['step']} of {summary['steps']}" if "step" in summary else status


def judge(rows: pd.DataFrame, losses: pd.DataFrame) -> list[str]:
    """The verdict on each row's validation loss; a claim among several must survive Holm's correction."""
    over_seeds = losses[losses["interval"] == "seeds"]
    corrected = dict(zip(over_seeds.index, holm(over_seeds["p_value"]), strict=True))
    verdicts = []
    baseline_given = rows.loc[rows["baseline"], "given"].any()
    for row in rows.itertuples():
        verdict = row.verdict
        if verdict == "":
            verdict = _verdict(losses.loc[row.name], corrected.get(row.name), len(corrected))
            if row.given or baseline_given:
                verdict = f"{verdict.partition(';')[0]}; not trained alike, so it is no verdict on a design"
        elif verdict == "not finished":
            verdict = row.status
        if row.seeds and "diverged" in row.status:
            verdict += f", over the finished runs only ({row.status})"
        verdicts.append(verdict)
    return verdicts


def _verdict(loss: pd.Series, corrected_p: float | None, comparisons: int) -> str:
    contains_zero = loss["low"] <= 0 <= loss["high"]
    if loss["interval"] == "seeds":
        if contains_zero:
            return "within noise"
        if corrected_p is not None and corrected_p >= 0.05:
            return f"within noise once corrected for {comparisons} comparisons"
        return "better" if loss["high"] < 0 else "worse"
    if loss["interval"] != "documents":
        return "one seed and no losses by document, noise not measured"
    if contains_zero:
        return "no clear difference on this validation set; one seed, seed-to-seed noise not measured"
    word = "lower" if loss["high"] < 0 else "higher"
    return f"{word} on this validation set; one seed, seed-to-seed noise not measured"


def write_headline(rows: pd.DataFrame, losses: pd.DataFrame, baseline: str, unit: str) -> str:
    """The one sentence to read if only one is read."""
    rows = rows[rows["baseline"] | ~rows["given"]]  # a design is judged, not a model
    losses = losses[losses.index.isin(rows["name"])]
    if rows["seeds"].sum() == 0:
        return "No run has finished yet."
    losses = losses[losses["difference"].notna()].sort_values("difference")
    if not rows.loc[~rows["baseline"], "seeds"].any():
        return f"Only the baseline, {baseline}, has finished: there is nothing to compare it with yet."
    if losses.empty:
        return f"No finished run can be compared with {baseline}."
    better = losses["name"].map(rows.set_index("name")["verdict"]).str.startswith("better")
    best = (losses[better] if better.any() else losses).iloc[0]
    difference = f"{best['difference']:+.4f} {unit}"
    if pd.notna(best["low"]):
        difference += f", 95 % interval {format_interval(best, 4)} over {describe_sample(best)}"
    if better.any():
        return f"{best['name']} is better than {baseline}: {difference}."
    verdict = rows.set_index("name").loc[best["name"], "verdict"]
    nearest = f"{best['name']}: {difference}; {verdict}"
    return f"No variant is shown to be better than {baseline}. Nearest is {nearest}."


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
    problems = []
    finished = table[table["counted"]]
    trained = finished[~finished["given"]]
    baseline_given = rows.loc[rows["baseline"], "given"].any()
    for key, (title, consequence) in SETTINGS.items():
        compared = finished if key in ("tokenizer", "val_text") else trained
        groups = compared.groupby(key, sort=False, dropna=False)["name"].unique()
        if len(groups) > 1:
            who = "; ".join(f"{_short(value)} in {', '.join(names)}" for value, names in groups.items())
            problems.append(f"Not the same {title} ({who}): {consequence}.")
    for row in rows.itertuples():
        if row.status not in ("finished", GIVEN_WEIGHTS):
            problems.append(f"{row.name}: {row.status}; only finished runs count in means and differences.")
        if row.seeds and not baseline_given and losses.loc[row.name, "seeds"] < row.seeds:
            problems.append(
                f"{row.name}: only {losses.loc[row.name, 'seeds']:.0f} of {row.seeds} finished runs have a "
                f"{baseline} partner with the same seeds and setting; the difference is over those."
            )
    for run in table.itertuples():
        problems += [f"{run.name} ({run.folder}) {problem}." for problem in _run_problems(run.record)]
    return problems


def _run_problems(run: RunRecord) -> list[str]:
    problems = []
    unigram = (run.summary.get("floors") or {}).get("unigram")
    if unigram is not None and run.val_loss >= unigram:
        problems.append(
            f"does not beat the unigram model: {run.val_loss:.3f} against {unigram:.3f} nats per token"
        )
    if run.summary["status"] == GIVEN_WEIGHTS:
        problems.append(
            "holds weights that were not trained here: on what text, how long and from which seed is not "
            "known, and the validation text may have been in it"
        )
    if start := run.summary.get("init_fingerprint"):
        problems.append(
            f"began from given weights, {run.summary.get('init_from')} ({start[:12]}), not from drawn ones"
        )
    if run.summary.get("skipped_steps"):
        problems.append(f"skipped {run.summary['skipped_steps']} steps")
    if run.summary.get("preflight") == "skipped":
        problems.append("was trained without the pre-flight check (--skip_preflight)")
    if run.summary.get("mixes_tokens"):
        problems.append("mixes tokens outside attention, where data.document_mask does not reach")
    if (own := run.summary.get("candidate_overrides")) is not None:
        problems.append(describe_overrides(own))
    if run.limit is not None:
        problems.append(f"had its tasks scored with a limit of {run.limit:g}, not on all items")
    if run.evaluated_step is not None and run.evaluated_step != run.summary.get("step"):
        problems.append(f"had its tasks scored at step {run.evaluated_step}, not at its last one")
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


def _short(value: object) -> str:
    if isinstance(value, int | float):
        return f"{value:,.0f}" if value == int(value) else f"{value:g}"
    text = str(value)
    return text if " " in text else text[:20]  # a fingerprint needs no more


def format_interval(score: pd.Series, digits: int) -> str:
    """[low, high] of a row of `scores`, signed."""
    return f"[{score['low']:+.{digits}f}, {score['high']:+.{digits}f}]"


def describe_sample(score: pd.Series) -> str:
    """What the interval of a row of `scores` is over: "3 paired seeds", "400 documents of 1 seed"."""
    if score["interval"] == "seeds":
        return f"{score['n']:.0f} paired seeds"
    return f"{score['n']:,.0f} {score['interval']} of {score['seeds']:.0f} seed" + (
        "s" if score["seeds"] > 1 else ""
    )
