"""What scripts/study.py does: plan, run, describe."""

from collections.abc import Callable
from dataclasses import replace

from training.run.search import find_run

from ..judging.commands import Start
from ..judging.ledger import Ledger
from ..tasks import check_tasks
from .budget import with_equal_budgets
from .command import StudyRequest
from .findings.files import write_results
from .findings.foretelling import foretell, read_foretold
from .findings.results import Results
from .findings.sequential import decider, looks_so_far
from .findings.tables import describe
from .looks import count_comparisons, ledger_entries
from .outcomes import Outcomes, read_outcome
from .plan import Cell, Fingerprints
from .power import describe_plan as describe_costs_and_power
from .registration import Registration, departures_from, describe_plan, read_registration, register
from .worker import Data, Worker, read_outcomes


def with_budgets(request: StudyRequest) -> StudyRequest:
    """The study with widened baselines, which torch has to be there for."""
    return replace(request, plan=with_equal_budgets(request.plan))


def print_plan(request: StudyRequest) -> int:
    """What the study takes and can show; nothing is run or written. Returns the exit status."""
    request, file = with_budgets(request), request.folder.registration
    data = _registered_data(request, read_registration(file) if file.exists() else None)
    comparisons = count_comparisons(request.plan, Ledger(request.folder.runs), data)
    print(describe_costs_and_power(request.plan, request.folder.runs, comparisons))
    return 0


def print_status(request: StudyRequest) -> int:
    """What was found so far, for the reader and in the study's files; nothing is run, registered or added to
    the ledger. Returns the exit status."""
    request, file = with_budgets(request), request.folder.registration
    registration = read_registration(file) if file.exists() else None
    data = _registered_data(request, registration)
    outcomes = read_outcomes(request.plan, request.folder, data)
    comparisons = count_comparisons(request.plan, Ledger(request.folder.runs), data)
    results = Results(request.plan, outcomes, comparisons)
    foretold = read_foretold(results, request.folder)
    if registration:  # by another version, or on a machine that lacks what is left
        write_results(results, foretold, registration, request.folder)
    print(describe(results, foretold, registration))
    for change in departures_from(registration, describe_plan(request.plan, data)) if registration else ():
        print(f"the study as it is now departs from what was registered: {change}")
    return 0


def run_study(request: StudyRequest, start: Start, say: Callable[[str], object]) -> int:
    """Register the study, run what is left of it, and say what was found. Returns the exit status.

    Args:
        request: the study.
        start: runs a command; it raises `Interrupted` where this process was asked to stop.
        say: is told what happens.

    Raises Interrupted, UserError or OSError.
    """
    request = with_budgets(request)
    plan, folder = request.plan, request.folder
    ledger = Ledger(folder.runs)
    ledger.entries()  # one that cannot be read is refused before anything is trained
    if plan.study.evaluate:
        for size in plan.sizes:
            config = plan.trials[size, plan.baseline, plan.shared[size]].recipe.eval
            check_tasks(config.tasks, config.data_dir, config.include_path, config.num_fewshot)
    data = Data(folder.runs, say)
    fingerprints = {
        size: data.of(plan.trials[size, plan.baseline, plan.shared[size]].recipe.data)[1]
        for size in plan.sizes
    }
    comparisons = count_comparisons(plan, ledger, fingerprints)
    worker = Worker(plan, folder, data, fingerprints, start, say, decider(comparisons))

    def ended() -> list[str]:
        """The runs of the plan that are there already, whoever trained them."""
        cells = {
            Cell(size, design, rate, seed)
            for size, design, rate in plan.trials
            for seed in (*plan.study.seeds_at_most, *plan.study.selection_seeds)
        }
        found = ((cell, find_run(folder.runs, worker.wanted(plan.trial(cell)))) for cell in cells)
        return [cell.name for cell, run in found if run is not None and read_outcome(run) is not None]

    registration = register(folder.registration, describe_plan(plan, fingerprints), ended, say)
    if request.retry and (forgotten := folder.forget_failures()):
        say(f"{forgotten} failed run(s) are tried again")

    said: set[str] = set()

    def look(outcomes: Outcomes) -> None:
        """Before each run and at the end: what is foretold, the results so far, and what is settled."""
        results = Results(plan, outcomes, comparisons)
        foretell(results, folder)
        write_results(results, read_foretold(results, folder), registration, folder)
        for size in plan.sizes:
            if results.is_settled(size):
                verdicts = results.verdicts[size]
                for entry in ledger_entries(
                    plan, outcomes, size, verdicts, registration.sha256, fingerprints
                ):
                    ledger.add(entry)
            elif plan.study.rules.sequential:
                for design in plan.candidates:
                    for sentence in looks_so_far(plan, outcomes, size, design, comparisons):
                        if sentence not in said:
                            said.add(sentence)
                            say(sentence)

    outcomes = worker.work(look)
    results = Results(plan, outcomes, comparisons)
    print(describe(results, read_foretold(results, folder), registration))
    print(f"the ledger {ledger.path} holds {ledger.looks()} look(s)")
    print(f"results: {folder.path / 'results.json'}, {folder.path / 'runs.csv'}")
    return 0 if any(row.verdicts for row in results.rows) else 1


def _registered_data(request: StudyRequest, registration: Registration | None) -> Fingerprints:
    """The data of each size, as the last start found it; nothing where there was none yet."""
    plan = registration.latest if registration else {}
    return {
        size: {key: plan.get(f"sizes.{size}.{key}", "") for key in ("data_fingerprint", "val_fingerprint")}
        for size in request.plan.sizes
    }
