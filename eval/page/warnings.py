"""What a reader must know before believing the page: what it is, of which runs, and what to do about it."""

from collections.abc import Iterable, Iterator

import pandas as pd

from training.watch.standing import DEAD

from ..evidence.blow_ups import FAILED
from ..evidence.comparison import Scorecard
from ..evidence.problems import (
    NOT_ALONE,
    ROUNDING,
    budget_problems,
    describe_lone_runs,
    run_problems,
    unlike_settings,
)
from ..evidence.results import GIVEN_WEIGHTS
from ..evidence.spikes import find_spikes
from ..statistics.failures import LEAST_EXCESS
from .blocks import Section, Sentences
from .runs import baseline_first

REMEDIES = {
    "floor": "train it longer, or at another learning rate",
    "weights": "read it as a model beside others, not as a verdict on its design",
    "start": "compare it with runs from the same weights only",
    "skipped": "their gradients were not finite, so lower the learning rate or lengthen the warm-up",
    "rollbacks": "differences from runs on all batches are not the design's alone",
    "explosions": "lower the learning rate or lengthen the warm-up",
    "preflight": "python -m model.preflight makes it now",
    "mixing": "train all designs with data.document_mask off before you compare",
    "overrides": "--train.candidate_overrides ignore or apply trains it the other way",
    "limit": "score all items: python -m eval RUN_DIR",
    "lines": "their steps are missing from its curves",
    "changed": "compare it with runs that were trained alike from their first step",
    "step": "score the last one: python -m eval RUN_DIR --step last",
}
"""By what `run_problems` are about."""
UNFINISHED = {
    "running": "write the page again when it has ended",
    DEAD: "its processes ended without a word; the same training command goes on from its last checkpoint",
    "interrupted": "the same training command goes on from its last checkpoint",
    "failed": "its error is in summary.json and in logs/; the same training command goes on",
}
"""By status."""
ALIKE = {
    NOT_ALONE: "train them alike, or read it as one change together",
    ROUNDING: "differences far above it stand",
}
"""By the consequence of settings that differ."""


def warnings_section(card: Scorecard) -> Section:
    """A sentence for each thing that a reader must know, the gravest first; no blocks where there is none."""
    lines = [
        *not_learnt(card),
        *failures(card),
        *unfinished(card),
        *one_seed(card),
        *lone_runs(card),
        *unlike(card),
        *(f"{problem}." for problem in budget_problems(card.rows)),
        *missing_evaluations(card),
        *recovered_spikes(card),
        *of_runs(card),
    ]
    return Section("warnings", "Before you believe it", [Sentences(lines)] if lines else [], kind="warning")


def not_learnt(card: Scorecard) -> Iterator[str]:
    """Where no run of the baseline beats the unigram model clearly, by tokenizer."""
    for tokenizer, runs in _learning(card).items():
        floor = card.floors[tokenizer]["unigram"]
        best = runs.loc[runs["val_loss"].idxmin()]
        margin = floor - best["val_loss"]
        if margin <= LEAST_EXCESS:
            where = "below" if margin > 0 else "above"
            yield (
                f"Nothing has learnt with this recipe: the best run of {best['name']} ends {abs(margin):.3f} "
                f"nats per token {where} the unigram model ({floor:.3f}), and less than {LEAST_EXCESS:g} "
                "below it is no language model. No verdict here says anything of designs: train longer, or "
                "choose another learning rate."
            )


def failures(card: Scorecard) -> Iterator[str]:
    """Runs that diverged or blew up, by design."""
    for row in card.rows.itertuples():
        if not row.failures:
            continue
        runs = card.runs[card.runs["name"] == row.name]
        causes = [
            f"{_seed(run)} {run.blow_up or f'diverged at step {run.step:,.0f}'}"
            for run in runs.itertuples()
            if run.blow_up or run.status == FAILED
        ]
        yield (
            f"{row.name} {row.failures}: {'; '.join(causes)}. Its means leave them out: look at its "
            "gradient norms, and try a lower learning rate or a longer warm-up."
        )


def unfinished(card: Scorecard) -> Iterator[str]:
    """Runs that have not ended well, by how they stand."""
    ended = card.runs["status"].isin(["finished", FAILED, GIVEN_WEIGHTS])
    for status, runs in card.runs[~ended].groupby("status", sort=False):
        steps = [f"step {run.step:,.0f}" for run in runs.itertuples() if pd.notna(run.step)]
        remedy = UNFINISHED.get(str(status), UNFINISHED["interrupted"])
        where = f", at {', '.join(steps)}" if steps else ""
        yield (
            f"{_who(card, runs['folder'])}: {status}{where}; only finished runs count in means and "
            f"differences: {remedy}."
        )
    without = card.runs[(card.runs["status"] == "finished") & card.runs["val_loss"].isna()]
    if len(without):
        yield (
            f"{_who(card, without['folder'])}: the final validation loss is not finite, so that it counts in "
            "no mean: look at the loss curve and the gradient norm."
        )


def one_seed(card: Scorecard) -> Iterator[str]:
    """Designs of which one run has finished."""
    single = card.rows.loc[(card.rows["seeds"] == 1) & ~card.rows["given"], "name"].tolist()
    if len(single):
        yield (
            f"One seed only: {', '.join(single)}. What another seed would change is not measured, so that "
            "there is no verdict: train with --train.init_seed 2 and 3 as well."
        )


def lone_runs(card: Scorecard) -> Iterator[str]:
    """Runs that no run of the baseline is paired with, where others are."""
    losses = card.scores[card.scores["metric"] == card.yardstick.name].set_index("name", drop=False)
    for row in card.rows.itertuples():
        if row.name in losses.index and (said := describe_lone_runs(row, card.rows, losses, card.baseline)):
            yield f"{said}: train {card.baseline} with the seeds that it lacks."


def unlike(card: Scorecard) -> Iterator[str]:
    """Settings that should be alike and are not."""
    for found in unlike_settings(card.runs):
        remedy = ALIKE.get(found.consequence)
        yield f"{found.sentence()}{f'; {remedy}' if remedy else ''}."


def missing_evaluations(card: Scorecard) -> Iterator[str]:
    """Finished runs that were not scored on tasks that others were scored on."""
    counted = card.runs[card.runs["counted"]]
    inside = {
        part
        for record in counted["record"]
        for parts in record.results.get("group_subtasks", {}).values()
        for part in parts
    }
    scored = {run.folder: set(run.record.scores) for run in counted.itertuples()}
    tasks = set().union(*scored.values()) - inside
    lacking = pd.Series({folder: ",".join(sorted(tasks - there)) for folder, there in scored.items()})
    for missing, runs in lacking[lacking != ""].groupby(lacking, sort=False) if len(lacking) else ():
        yield (
            f"{_who(card, runs.index)}: not scored on {missing.replace(',', ', ')}, as others are; a mean "
            f"over fewer runs is less sure: python -m eval RUN_DIR --tasks {missing}."
        )


def recovered_spikes(card: Scorecard) -> Iterator[str]:
    """Runs whose training loss rose and came back."""
    found = {
        run.folder: spikes
        for run in card.runs[card.runs["blow_up"] == ""].itertuples()
        if (spikes := find_spikes(run.record))
    }
    if found:
        at = max(found, key=lambda folder: found[folder].highest)
        highest, count = found[at], sum(spikes.count for spikes in found.values())
        where = f" of {_who(card, [at])}" if len(found) > 1 else ""
        yield (
            f"{_who(card, found)}: {count} spike{'s' if count > 1 else ''} in the training loss that went "
            f"by, the highest of {highest.highest:+.2f} nats per token at step {highest.step:,}{where}: look "
            "there at the gradient norm, and try stronger clipping or a lower learning rate."
        )


def of_runs(card: Scorecard) -> Iterator[str]:
    """What else must be known of runs; what is true of several is said once."""
    has_learnt = not list(not_learnt(card))
    found: dict[tuple[str, str], list[str]] = {}
    for run in card.runs.itertuples():
        for about, said in run_problems(run.record).items():
            # `failures` and `not_learnt` have said it.
            if about == "floor" and (run.blow_up or not has_learnt):
                continue
            found.setdefault((about, said), []).append(str(run.folder))
    for (about, said), folders in found.items():
        each = "each " if len(folders) > 1 else ""
        yield f"{_who(card, folders)}: {each}{said}: {REMEDIES[about]}."


def _learning(card: Scorecard) -> dict[str, pd.DataFrame]:
    """By tokenizer the baseline's runs that say whether the recipe learns, where the floor is known."""
    runs = card.runs[card.runs["baseline"] & ~card.runs["given"] & (card.runs["status"] == "finished")]
    runs = runs[runs["val_loss"].notna()]
    known = {tokenizer for tokenizer, floors in card.floors.items() if "unigram" in floors}
    return {str(tokenizer): of for tokenizer, of in runs.groupby("tokenizer") if tokenizer in known}


def _who(card: Scorecard, folders: Iterable[str]) -> str:
    """Runs by their rows, and by seed where not all of a row's: "vanilla; rmsnorm, seeds 1 and 2"."""
    wanted = set(folders)
    parts = []
    for name in baseline_first(card)["name"]:
        runs = card.runs[card.runs["name"] == name]
        some = runs[runs["folder"].isin(wanted)]
        if len(some) == len(runs):
            parts.append(name)
        elif len(some):
            seeds = [str(run.init_seed) for run in some.itertuples()]
            parts.append(f"{name}, seed{'s' if len(seeds) > 1 else ''} {' and '.join(seeds)}")
    return "; ".join(parts)


def _seed(run: object) -> str:
    return f"seed {getattr(run, 'init_seed', '-')}"
