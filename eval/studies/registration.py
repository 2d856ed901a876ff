"""What a study fixed before its first run: hashed, written down, and every later departure beside it."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from filelock import FileLock

from model.files import write_json
from training.run.folder import as_json
from training.run.reader import read_json

from .plan import Fingerprints, Plan, flat, resolved


class Departure(TypedDict):
    """What a start did otherwise than was registered."""

    time: str
    sha256: str
    changes: list[str]


class RegistrationFile(TypedDict):
    """registration.json; its attributes are those of `Registration`."""

    time: str
    sha256: str
    plan: dict[str, Any]
    latest: NotRequired[dict[str, Any]]
    there_before: list[str]
    departures: list[Departure]


@dataclasses.dataclass(frozen=True)
class Registration:
    """A study's registration.

    Attributes:
        time: when it was made (UTC).
        sha256: of the plan as it was then.
        plan: that plan, by dotted keys.
        latest: the plan of the last start, which may depart from it.
        there_before: runs of the plan that had ended by then, whose losses could be known.
        departures: what later starts did otherwise, each with its time, `sha256` and changes.
        is_intact: whether the plan in the file still has its hash.
    """

    time: str
    sha256: str
    plan: Mapping[str, Any]
    latest: Mapping[str, Any]
    there_before: tuple[str, ...]
    departures: tuple[Mapping[str, Any], ...]
    is_intact: bool

    def sentences(self) -> list[str]:
        """What results say of it."""
        said = [f"pre-registered {self.time}, before the first run: sha256 {self.sha256[:16]}"]
        if self.there_before:
            said[0] = (
                f"registered {self.time} (sha256 {self.sha256[:16]}), when {len(self.there_before)} of its "
                "runs had ended already"
            )
        if not self.is_intact:
            said.append("the registered plan was edited since: it does not have its hash")
        for departure in self.departures:
            for change in departure["changes"]:
                said.append(f"departure {departure['time']}: {change}")
        return said


def describe_plan(plan: Plan, data: Fingerprints) -> dict[str, Any]:
    """The resolved plan by dotted keys: what is run, on which data, by which rules, and what is compared."""
    study = plan.study
    tree: dict[str, Any] = {
        "rules": dataclasses.asdict(study.rules),
        "baseline": plan.baseline,
        "designs": {design.name: plan.identity(design.name) for design in plan.designs},
        "seeds": [*study.seeds],
        "selection_seeds": [*study.selection_seeds],
        "ranks": study.ranks,
        "evaluate": study.evaluate,
        "order": [*plan.sizes],
        "target": study.target if isinstance(study.target, str) else None,
        "sizes": {},
        "comparisons": _comparisons(plan),
    }
    for size in plan.sizes:
        trial = plan.trials[size, plan.baseline, plan.shared[size]]
        rates = {
            design: {
                rate: plan.trials[size, design, rate].deepspeed.peak_lr for rate in plan.rates(size, design)
            }
            for design in plan.arms(size)
        }
        tree["sizes"][size] = {**resolved(trial.recipe, trial.deepspeed.raw), "rates": rates, **data[size]}
    if plan.target is not None:
        tree["sizes"]["target"] = resolved(plan.target.recipe, plan.target.deepspeed.raw)
    return as_json(flat(tree))


def register(
    file: Path, plan: Mapping[str, Any], ended: Callable[[], Collection[str]], say: Callable[[str], object]
) -> Registration:
    """The registration of a study, made now where there is none; a plan that departs from it is noted there.

    Args:
        file: of the registration.
        plan: as `describe_plan` gives it.
        ended: gives the names of the plan's runs that have ended.
        say: is told of a departure.

    Raises UserError where the file cannot be read.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if not file.exists():
            content = {"time": now, "sha256": _hash(plan), "there_before": sorted(ended()), "departures": []}
            write_json(file, {**content, "plan": dict(plan)})
            say(f"registered in {file}: sha256 {content['sha256'][:16]}")
            return read_registration(file)
        there = read_registration(file)
        latest = there.departures[-1]["sha256"] if there.departures else there.sha256
        if _hash(plan) != latest:
            changes = departures_from(there, plan) or ["the registered plan again"]
            for change in changes:
                say(f"departure from what was registered: {change}")
            departure = {"time": now, "sha256": _hash(plan), "changes": changes}
            content = read_json(file)
            write_json(
                file, content | {"departures": [*content["departures"], departure], "latest": dict(plan)}
            )
        return read_registration(file)


def read_registration(file: Path) -> Registration:
    """What a file of `register` holds. Raises UserError where it holds anything else."""
    content = read_json(file, RegistrationFile)
    return Registration(
        content["time"],
        content["sha256"],
        content["plan"],
        content.get("latest", content["plan"]),
        tuple(content["there_before"]),
        tuple(content["departures"]),
        _hash(content["plan"]) == content["sha256"],
    )


def departures_from(registration: Registration, plan: Mapping[str, Any]) -> list[str]:
    """What a plan does otherwise than was registered, a sentence each."""
    return list(_changes(registration.plan, plan))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    for key in sorted(before.keys() | now.keys()):
        if key not in now:
            yield f"{key} is gone (was {_shown(before[key])})"
        elif key not in before:
            yield f"{key} is new: {_shown(now[key])}"
        elif before[key] != now[key]:
            yield f"{key} is {_shown(now[key])}, was {_shown(before[key])}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:16] if len(text) == 64 and " " not in text else text


def _comparisons(plan: Plan) -> list[str]:
    """What is compared, a sentence each."""
    found = []
    for size in plan.sizes:
        for design in plan.candidates:
            pair = f"size {size}: {design} against {plan.baseline}"
            found.append(f"{pair} at the shared rate, on the judged seeds")
            if (wide := plan.widened.get((size, design))) is not None:
                found.append(
                    f"size {size}: {design} against {wide}, which has its budget, on the judged seeds"
                )
            if len(rates := plan.rates(size, design)) > 1:
                found.append(
                    f"{pair} each at its own best of {len(rates)} rates, chosen on the selection seeds, on "
                    "the judged seeds"
                )
    return found


def _hash(plan: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
