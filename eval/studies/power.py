"""Before a study: how many runs it is, what they take, and how many seeds show what difference."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model import DESIGN_KEYS
from model.errors import UserError
from training.run.changes import differing_keys
from training.run.reader import read_summary
from training.run.search import OF_NO_EFFECT

from ..judging.request import Trial
from ..statistics.crossed import effects
from ..statistics.power import MOST_SEEDS, seeds_needed
from .findings.arms import losses_by_document
from .findings.sequential import Comparisons
from .outcomes import Outcome, read_outcome
from .plan import Plan

SEED_SD, DOCUMENT_SD = 0.002, 0.0005
"""Nats per token, where nothing was measured: of one run's final loss over seeds, and of a mean difference
over validation sets. Public runs with fixed data and validation have 0.0007 to 0.0013 over seeds."""
DIFFERENCES = (0.01, 0.005, 0.002)
SEED = "train.init_seed"
OF_SPEED = {f"model.{key}" for key in DESIGN_KEYS} | {SEED, "data", "schedule", "ds.optimizer.params.lr"}
"""What two runs may differ in whose speed is about the same."""


@dataclass(frozen=True)
class Noise:
    """What a study has to see through.

    Attributes:
        seed_sd: of one run's final loss over seeds, nats per token.
        document_sd: of a mean difference over validation sets of this size.
        origin: where both come from, in words.
    """

    seed_sd: float
    document_sd: float
    origin: str


def measure_noise(runs: Path, trial: Trial) -> Noise:
    """The noise of a recipe, from finished runs of one design that differ in their seeds alone (A/A runs).

    Their documents say how much two seeds differ from text to text; two designs are taken to differ as much.
    """
    found = [outcome for folder in _alike(runs, trial, {SEED}) if (outcome := _finished(folder))]
    if len(found) < 2:
        return Noise(
            SEED_SD,
            DOCUMENT_SD,
            f"assumed: {runs} holds no two finished runs of this recipe and baseline",
        )
    seed_sd = float(np.std([outcome.loss for outcome in found], ddof=1))
    pairs = list(zip(found[::2], found[1::2], strict=False))
    variances = [
        part.variance
        for one, other in pairs
        for part in effects(*losses_by_document([[one], [other]]))[0].components
    ]
    origin = f"measured on {len(found)} runs of {trial.recipe.variant} that differ in their seeds alone"
    if not variances:
        return Noise(seed_sd, DOCUMENT_SD, f"{origin}; {DOCUMENT_SD:g} over documents is assumed")
    return Noise(seed_sd, math.sqrt(float(np.mean(variances))), origin)


def describe_plan(plan: Plan, runs: Path, comparisons: Comparisons) -> str:
    """What the study will take, and its power, in lines."""
    study = plan.study
    lines = [f"study {study.name}: {plan.baseline} against {', '.join(plan.candidates)}"]
    for size in plan.sizes:
        cells = [cell for design in plan.arms(size) for cell in plan.cells(size, design)]
        trial = plan.trials[size, plan.baseline, plan.shared[size]]
        tokens = sum(plan.trials[cell.size, cell.design, cell.rate].tokens for cell in cells)
        lines += ["", f"size {size}: at most {len(cells)} runs of {trial.tokens:,} tokens, {tokens:,} in all"]
        lines += [f"  rates: {_rates(plan, size)}; seeds: {_seeds(plan)}"]
        lines += [f"  time: {_time(runs, trial, tokens, study.ranks)}"]
        for design in plan.candidates:
            if wide := plan.widened.get((size, design)):
                lines.append(f"  {design} is over budget: {wide}, with an MLP of that width, is trained too")
        noise = measure_noise(runs, trial)
        of_each = f"{noise.seed_sd:.4f} nats over seeds, {noise.document_sd:.4f} over documents"
        lines += [f"  noise: {of_each} ({noise.origin})"]
        lines += [f"  {line}" for line in _power(noise, comparisons[size])]
    if len(plan.sizes) > 1:
        gate = f"whose difference at the one before is at most {study.rules.gate:g}"
        lines += ["", f"a size is only run for designs {gate}"]
    return "\n".join(lines)


def _rates(plan: Plan, size: str) -> str:
    found = {
        rate: plan.trials[size, design, rate].deepspeed.peak_lr
        for design in plan.arms(size)
        for rate in plan.rates(size, design)
    }
    return ", ".join(f"{rate} ({peak:g})" for rate, peak in found.items())


def _seeds(plan: Plan) -> str:
    study = plan.study
    judged = f"{len(study.seeds)} judged"
    if study.rules.sequential:
        judged = f"up to {study.rules.most_seeds} judged, one by one"
    chosen = len(study.selection_seeds)
    return f"{judged}, {chosen} that choose the rate" if chosen else judged


def _power(noise: Noise, looks: int) -> Iterator[str]:
    yield f"seeds that show a difference with 80 % power, corrected for {looks} look(s)"
    for difference in DIFFERENCES:
        seeds = seeds_needed(
            difference, seed_sd=noise.seed_sd, document_sd=noise.document_sd, comparisons=looks
        )
        few = f"more than {MOST_SEEDS}, or the validation set is too small for it"
        yield f"  {difference:g} nats: {few if seeds is None else seeds}"


def _time(runs: Path, trial: Trial, tokens: int, ranks: int) -> str:
    """Of so many tokens, by the fastest like run that is there."""
    speeds = {}
    for folder in _alike(runs, trial, OF_SPEED):
        summary = read_summary(folder)
        # With validation and checkpoints, where it is known.
        rate = summary.get("tokens_per_s") or (summary.get("throughput") or {}).get("tokens_per_s")
        if rate and summary.get("world_size") == ranks:
            speeds[folder] = rate
    if not speeds:
        return f"not known: {runs} holds no run of this size and engine on {ranks} rank(s)"
    folder, rate = max(speeds.items(), key=lambda item: item[1])
    hours = tokens / rate / 3600
    of_ranks = f"{hours:,.2f} hours, {hours * ranks:,.2f} rank hours"
    return f"{of_ranks}, without starts, at the {rate:,.0f} tokens per second of {folder}"


def _alike(runs: Path, trial: Trial, apart: set[str]) -> Iterator[Path]:
    """Folders of runs whose resolved configs differ from a run's in these keys and sections alone."""
    for file in sorted(runs.glob("*/recipe.yaml")):
        try:
            differing = list(
                differing_keys(file.parent, vars(trial.recipe), trial.deepspeed.raw, OF_NO_EFFECT | apart)
            )
            differing = [key for key in differing if not any(key[0].startswith(f"{one}.") for one in apart)]
            if not differing and (file.parent / "summary.json").is_file():
                yield file.parent
        except UserError:  # no run, or one whose files are damaged
            continue


def _finished(folder: Path) -> Outcome | None:
    outcome = read_outcome(folder)
    return outcome if outcome and outcome.is_finished else None
