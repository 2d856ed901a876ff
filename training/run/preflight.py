"""The pre-flight check of a run: once, before a GPU second is spent."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from model.files import write_json

from .folder import RunFolder

if TYPE_CHECKING:
    from model import GPTConfig
    from model.treatment import Treatment

    from ..engine.ranks import Ranks


def design_problem(
    config: "GPTConfig", run: RunFolder, wanted: bool, say: Callable[[str], None]
) -> str | None:
    """Check a design on rank 0, unless its run was checked before; the summary says how it went.

    Args:
        config: the model that the run would train.
        run: gets `preflight.json`.
        wanted: False leaves the check out, and the summary says so.
        say: is told of each check that did not pass, and of the verdict.

    Returns:
        Why the design is refused, in a sentence; None where it is not, and on the other ranks.
    """
    if run.rank > 0 or run.summary.get("preflight"):
        return None
    if not wanted:
        from model.probe import probe

        treatment = probe(config)
        for warning in filter(None, (treatment.buffer_warning(), treatment.parameter_warning())):
            say(f"without a pre-flight check: {warning}")
        run.summary |= treatment.facts() | {"preflight": "skipped"}
        return None
    from model import variant_name  # here: most starts are checked already, or do not want it
    from model.preflight import preflight
    from model.treatment import Treatment

    report = preflight(config, thorough=False)
    write_json(run.path / "preflight.json", report.to_json())
    for check in report.checks:
        if check.status != "pass":
            say(f"pre-flight {check.status}: {check.name}: {check.detail}")
    if not report.passed:
        return (
            f"the pre-flight check refuses {variant_name(config)}: python -m model.preflight says more, and "
            "--skip_preflight trains it all the same"
        )
    run.summary |= {key: report.numbers[key] for key in Treatment().facts()}
    run.summary["preflight"] = report.verdict()
    say(f"pre-flight check: {report.verdict()}")
    return None


def treatment_of_run(run: RunFolder, ranks: "Ranks") -> "Treatment":
    """How the design's tensors are treated: what rank 0 wrote when the run began. All ranks call it."""
    from model.treatment import Treatment

    return Treatment.of(ranks.broadcast(run.summary))
