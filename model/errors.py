"""What a user did wrong, in one sentence: the one error class, its hint, and how a command ends on it."""

import difflib
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from .redaction import redact

FAILED = 1
"""Exit status of a command that met an error which is not the user's, or of a candidate that was refused."""
REFUSED = 2
"""Exit status of a command that was given what cannot be."""
DIVERGED = 3
"""Exit status of a run whose loss or gradients left what training can mend."""
INTERRUPTED = 75
"""Exit status of a run that was stopped and saved: the same command goes on."""
_BUILDERS = ("arguments", "designs", "siblings")
"""Modules that call a design's code; where they do so says nothing."""


class UserError(ValueError):
    """What a user gave cannot be: the message is one sentence that says what is wrong and what to do.

    It has no full stop at its end, because commands print it after `error: `. What the machine or the network
    did is an OSError; anything else is a fault of NormLab and keeps its stack trace.
    """


class LauncherError(UserError):
    """What a launcher told this process cannot be: which of several this is, is not known, so each speaks."""


def nearest_name(given: str, known: Iterable[str], cutoff: float = 0.0) -> str | None:
    """The known name nearest to `given`; None where none is near.

    Args:
        given: what does not exist.
        known: what does.
        cutoff: from 0, which always finds one, to 1, which finds equal names only.
    """
    return next(iter(difflib.get_close_matches(given, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(given: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """` (did you mean 'NAME'?)` for the name that `nearest_name` finds, or nothing."""
    name = nearest_name(given, known, cutoff)
    return f" (did you mean '{name}'?)" if name else ""


def print_error(sentence: object) -> int:
    """Print `error: SENTENCE` to stderr and return the exit status for it.

    Only rank 0 speaks, but for a LauncherError.
    """
    if (os.environ.get("RANK") or "0") == "0" or isinstance(sentence, LauncherError):
        print(redact(f"error: {sentence}"), file=sys.stderr)
    return REFUSED


def raised_at(error: BaseException) -> str:
    """Where in a design's code an exception arose: ` (candidate.py line 12)`, the user's before NormLab's."""
    if error.__cause__ is not None and (found := raised_at(error.__cause__)):
        return found
    ours, torch = Path(__file__).parent, Path(str(getattr(find_spec("torch"), "origin", ""))).parent
    own = registered = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        where = f" ({path.name} line {trace.tb_lineno})"
        if path.parent == ours and path.stem not in _BUILDERS:
            registered = where
        elif path.suffix == ".py" and not path.is_relative_to(ours) and not path.is_relative_to(torch):
            own = own if "importlib" in path.parts else where
        trace = trace.tb_next
    return own or registered
