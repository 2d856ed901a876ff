"""The pre-flight check of a run: once, before a GPU second is spent."""

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from model.files import write_json

from .folder import RunFolder

if TYPE_CHECKING:
    from model import GPTConfig
    from model.treatment import Treatment

    from ..config.recipe import Recipe
    from ..engine.ranks import Ranks


def design_problem(recipe: "Recipe", run: RunFolder, say: Callable[[str], None]) -> str | None:
    """Check a design on rank 0, unless its run was checked before; the summary says how it went.

    Args:
        recipe: the run's; where `train.preflight` is false, the summary says so.
        run: gets `preflight.json`.
        say: is told of each check that did not pass, and of the verdict.

    Returns:
        Why the design is refused, in a sentence; None where it is not, and on the other ranks.
    """
    if run.rank > 0 or run.summary.get("preflight"):
        return None
    if not recipe.train.preflight:
        from model.probe import probe

        treatment = probe(recipe.model)
        for warning in filter(None, (treatment.buffer_warning(), treatment.parameter_warning())):
            say(f"without a pre-flight check: {warning}")
        run.summary |= treatment.facts() | {"preflight": "skipped"}
        return None
    from model import variant_name  # here: most starts are checked already, or do not want it
    from model.preflight import preflight
    from model.treatment import Treatment

    config = recipe.model
    report = preflight(config, thorough=False)
    write_json(run.path / "preflight.json", report.to_json())
    for check in report.checks:
        if check.status != "pass":
            say(f"pre-flight {check.status}: {check.name}: {check.detail}")
    if not report.passed:
        return (
            f"the pre-flight check refuses {variant_name(config)}: `{_command(config)}` says more, and "
            "--skip_preflight trains it all the same"
        )
    if recipe.data.document_mask and not report.numbers["documents_apart"]:
        return (
            f"data.document_mask is true, but {variant_name(config)} does not keep documents apart, as "
            "contract.documents of the pre-flight check says: set it to false"
        )
    run.summary |= {key: report.numbers[key] for key in Treatment().facts()}
    run.summary["preflight"] = report.verdict()
    run.summary["mixes_tokens"] = report.numbers["mixes_tokens"]
    say(f"pre-flight check: {report.verdict()}")
    return None


def _command(config: "GPTConfig") -> str:
    """The command that checks this model thoroughly."""
    from model.preflight.__main__ import COMMAND, DEFAULTS

    usual = COMMAND.build_sections(DEFAULTS, {})[0]["model"]
    words = [
        f"--model.{key} {shlex.quote(value if isinstance(value, str) else json.dumps(value))}"
        for field in fields(config)
        for key, value in _flat(field.name, getattr(config, field.name))
        if getattr(usual, field.name) != getattr(config, field.name)
    ]
    return " ".join(["python -m model.preflight", *words])


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A key with its value, or a design's options each with its own."""
    if isinstance(value, dict):
        yield from ((f"{key}.{name}", inner) for name, inner in value.items())
    else:
        yield key, value


def treatment_of_run(run: RunFolder, ranks: "Ranks") -> "Treatment":
    """How the design's tensors are treated: what rank 0 wrote when the run began. All ranks call it."""
    from model.treatment import Treatment

    return Treatment.of(ranks.broadcast(run.summary))
