"""A study's designs in the ledger of all that was judged, and the looks its intervals are corrected for."""

from collections.abc import Sequence
from typing import Any

from ..judging.ledger import SEEN, Ledger, look_of
from ..judging.request import Trial, describe_design
from .findings.sequential import Comparisons
from .findings.verdicts import Verdict, whose
from .outcomes import Outcomes
from .plan import Cell, Fingerprints, Plan


def count_comparisons(plan: Plan, ledger: Ledger, data: Fingerprints) -> Comparisons:
    """By size: all looks so far, those of the study at this size and the smaller ones among them.

    The ledger counts up to the study's own first line: what was looked at later is no look that it had.
    """
    seen: set[str] = set()
    for entry in ledger.entries():
        if (entry.get("study") or {}).get("name") == plan.study.name:
            break
        if entry.get("status") in SEEN:
            seen.add(look_of(entry))
    found = {}
    for size in plan.sizes:
        its = _baseline_trial(plan, size)
        seen |= {
            look_of(
                {
                    "candidate": {"design_identity": plan.identity(design)},
                    "baseline": {"design_identity": plan.identity(plan.baseline)},
                    "data": data[size],
                    "length": {"tokens": its.tokens},
                }
            )
            for design in plan.candidates
        }
        found[size] = len(seen)
    return found


def ledger_entries(
    plan: Plan, outcomes: Outcomes, size: str, verdicts: Sequence[Verdict], sha256: str, data: Fingerprints
) -> list[dict[str, Any]]:
    """The lines of a size whose runs have all ended, one for each design."""
    study, its = plan.study, _baseline_trial(plan, size)
    entries = []
    for design in plan.candidates:
        own = [verdict for verdict in verdicts if verdict.design == design]
        if not own:
            continue
        trial = plan.trials[size, design, plan.shared[size]]
        settings = trial.settings()
        at_shared = own[0]
        seeds = study.seeds_at_most[: at_shared.planned]
        loss = {
            (one, seed): outcomes[Cell(size, one, plan.shared[size], seed)].loss
            for one in (design, plan.baseline)
            for seed in seeds
        }
        word = "; ".join(f"{verdict.word} at {whose(verdict)}" for verdict in own)
        entries.append(
            {
                "status": "diverged" if len(at_shared.failed) == at_shared.planned else "judged",
                "reason": f"{design} against {plan.baseline}: {word}",
                "study": {"name": study.name, "size": size, "sha256": sha256},
                "candidate": _described(plan, design, trial),
                "baseline": _described(plan, plan.baseline, its),
                "recipe": study.recipe,
                "deepspeed_config": study.deepspeed_config,
                "changes": {**study.overrides, **study.ladder[size]},
                "settings": {"candidate": settings, "baseline": its.settings()},
                "candidate_overrides": None,
                "data": {
                    "source": trial.recipe.data.source,
                    "tokenizer": trial.recipe.data.tokenizer,
                    **data[size],
                },
                "length": {key: settings[key] for key in ("steps", "tokens_per_step")}
                | {"tokens": trial.tokens},
                "verdict": {"word": at_shared.word, "sentence": f"{design} against {plan.baseline}: {word}"},
                "difference": _difference(at_shared),
                "seeds": [
                    {
                        "seed": seed,
                        "candidate": _finite(loss[design, seed]),
                        "baseline": _finite(loss[plan.baseline, seed]),
                        "difference": _finite(loss[design, seed] - loss[plan.baseline, seed]),
                    }
                    for seed in seeds
                ],
            }
        )
    return entries


def _baseline_trial(plan: Plan, size: str) -> Trial:
    return plan.trials[size, plan.baseline, plan.shared[size]]


def _described(plan: Plan, design: str, trial: Trial) -> dict[str, Any]:
    return describe_design(trial) | {"variant": design, "design_identity": plan.identity(design)}


def _difference(verdict: Verdict) -> dict[str, Any] | None:
    if verdict.effect is None:
        return None
    return {
        "mean": verdict.effect.estimate,
        "low": _finite(verdict.low),
        "high": _finite(verdict.high),
        "p_value": verdict.p_value,
        "could_have_shown": _finite(verdict.could_show),
        "unit": "nats/token",
        "interval_over": f"{verdict.effect.seeds} paired seeds and {verdict.effect.documents} documents",
    }


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
