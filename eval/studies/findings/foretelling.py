"""What smaller sizes foretell of a larger one: written down before it is trained, held against what came."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from filelock import FileLock

from model.files import write_json
from training.run.reader import read_json

from ..budget import flops_of_run
from ..outcomes import StudyFolder
from ..plan import Plan
from .projection import Estimate, project
from .results import Results, points
from .shapes import WrittenDown

TARGET = "target"
"""Names a size that the study foretells and does not train."""


@dataclass(frozen=True)
class Foretold:
    """A design's difference at a size, from the smaller ones.

    Attributes:
        foretold: nats per token.
        sizes: that it was fitted over.
        time: when it was written down (UTC).
        came: what the runs of the size showed later; None so far.
    """

    design: str
    size: str
    foretold: Estimate
    sizes: tuple[str, ...]
    time: str
    came: Estimate | None


def foretell(results: Results, folder: StudyFolder) -> None:
    """Write down what can be foretold now: of sizes of which no run of the design has ended yet.

    What was written down stays.
    """
    file = folder.path / "projections.json"
    with FileLock(file.with_suffix(".lock")):
        written: dict[str, Any] = read_json(file, dict[str, WrittenDown]) if file.exists() else {}
        before = len(written)
        for size, design, below in _open(results):
            if f"{size}, {design}" in written:
                continue
            known = points(results, design, below)
            if len(known) < max(2, len(below)):
                continue
            estimate = project(known, _flops(results, size), results.plan.study.rules.confidence)
            if estimate is not None:
                now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                written[f"{size}, {design}"] = {
                    "size": size, "design": design, **vars(estimate), "sizes": list(below), "time": now
                }  # fmt: skip
        if len(written) > before:
            write_json(file, written)


def read_foretold(results: Results, folder: StudyFolder) -> list[Foretold]:
    """What was written down, beside what came. Raises UserError for a file that holds anything else."""
    file = folder.path / "projections.json"
    if not file.exists():
        return []
    found = []
    for one in read_json(file, dict[str, WrittenDown]).values():
        foretold = Estimate(one["value"], one["low"], one["high"])
        came = None
        if one["size"] in results.plan.sizes and one["design"] in results.plan.candidates:
            verdict = results.row(one["size"], one["design"]).last
            if verdict and verdict.effect and not verdict.failed:
                came = Estimate(verdict.effect.estimate, verdict.low, verdict.high)
        found.append(Foretold(one["design"], one["size"], foretold, tuple(one["sizes"]), one["time"], came))
    return found


def _open(results: Results) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Sizes and designs of which no run has ended, with the sizes below."""
    plan: Plan = results.plan
    for design in plan.candidates:
        for number, size in enumerate(plan.sizes):
            if not any((cell.size, cell.design) == (size, design) for cell in results.outcomes):
                yield size, design, plan.sizes[:number]
        if plan.target is not None:
            yield TARGET, design, plan.sizes


def _flops(results: Results, size: str) -> float:
    if size != TARGET:
        return results.flops(size)
    assert results.plan.target is not None
    return flops_of_run(results.plan.target)
