"""The pre-flight check of a run: once, before a GPU second is spent."""

from collections.abc import Callable

from model import GPTConfig, variant_name
from model.preflight import preflight

from .folder import RunFolder, write_json


def refusal(config: GPTConfig, run: RunFolder, wanted: bool, say: Callable[[str], None]) -> str | None:
    """Check a design on rank 0, unless its run was checked before; the summary says how it went.

    Args:
        config: the model that the run would train.
        run: gets `preflight.json`.
        wanted: False leaves the check out, and the summary says so.
        say: is told of each check that did not pass, and of the verdict.

    Returns a sentence where the design is refused.
    """
    if run.rank > 0 or run.summary.get("preflight"):
        return None
    if not wanted:
        run.summary["preflight"] = "skipped"
        return None
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
    run.summary["preflight"] = report.verdict()
    say(f"pre-flight check: {report.verdict()}")
    return None
