"""The pre-flight check: a broken or cheating design is found in a minute, before a run is paid for.

python -m model.preflight --model.variant my_design.py --model.preset gpt2_medium
"""

import contextlib
import io
from typing import TYPE_CHECKING

from ..catalogue import variant_name
from ..config import GPTConfig
from .report import Check, Report

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Check", "Report", "preflight"]


def preflight(config: GPTConfig, *, tokens: "Tensor | None" = None, thorough: bool = True) -> Report:
    """Check a design at the target's depth and lengths and a small width, on the CPU.

    Args:
        config: the model that a run would train.
        tokens: (N,) int64: a real text's tokens, for the check that the design learns.
        thorough: False leaves out cost, step time, compilation and learning, and checks fewer positions: what
            a run does before it starts.

    Raises UserError for a design that does not exist or lacks an option.
    """
    # Here, so that a command that is refused or explains itself has not imported torch.
    from .candidate import Candidate, one_thread
    from .causality import check_causality
    from .contract import check_contract
    from .cost import check_cost
    from .learning import check_learning
    from .numerics import check_numerics
    from .signal import check_signal

    report = Report(variant_name(config))
    printed = io.StringIO()  # of a design that prints in each of a thousand forwards
    with contextlib.redirect_stdout(printed):
        candidate = Candidate.of(config, report.numbers, thorough)
        with one_thread():
            runs = check_contract(candidate, report)
            if runs:
                check_causality(candidate, report)
                check_numerics(candidate, report)
                check_signal(candidate, report)
            if runs and thorough:
                check_cost(candidate, report)
                check_learning(candidate, report, tokens)
    if lines := printed.getvalue().strip().splitlines():
        report.note("contract.prints", f"it prints as it is built or run: '{lines[0][:80]}'")
    return report
