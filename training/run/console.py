"""What a user sees: NormLab's sentences and bars on the terminal, the libraries' chatter in a log file."""

import io
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from model.errors import REFUSED, LauncherError
from model.redaction import redact


class _Lossy(io.FileIO):
    """What cannot be written is lost, and the run goes on.

    Of a terminal that is when its reader is gone, as when ssh breaks off, and of a log when the disk is full.
    """

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


class _Log(io.TextIOWrapper):
    """What this process and its libraries print, without signatures, tokens and keys."""

    def write(self, text: str) -> int:
        super().write(redact(text))
        return len(text)


class Console:
    """The terminal, once the noise is gone.

    From construction on, whatever this process writes to stdout and stderr (C++ code and subprocesses
    included) goes to `log_file`; only `say`, `fail` and `bar` reach the terminal's stderr. A rank other than
    0 is made `silent`. An uncaught exception is named in one line, by a silent rank too; its traceback is in
    the log.

    Attributes:
        names_crash: False where another rank names the cause of this one's uncaught exception.
    """

    def __init__(self, log_file: Path, silent: bool = False) -> None:
        self.silent = silent
        self.names_crash = True
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        terminal = io.BufferedWriter(_Lossy(os.dup(2), "w"))
        self.terminal: TextIO = io.TextIOWrapper(terminal, line_buffering=True)
        self.log_to(log_file)
        sys.excepthook = self._crashed

    def log_to(self, log_file: Path) -> None:
        """From here on what is not said on the terminal goes to the end of this file."""
        self.log_file = log_file
        log_file.parent.mkdir(parents=True, exist_ok=True)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = _log_stream(1), _log_stream(2)
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)

    def say(self, text: str) -> None:
        """Print a line, above a bar if one is running."""
        if not self.silent:
            self.say_by_any_rank(text)

    def say_by_any_rank(self, text: str) -> None:
        """Print a line, by a silent rank too."""
        tqdm.write(redact(text), file=self.terminal)
        self.terminal.flush()

    def bar(self, title: str, **options: Any) -> tqdm:
        """A tqdm bar on the terminal; in a file or a pipe it is a line now and then."""
        interval = 0.2 if self.terminal.isatty() else 5.0
        options = {"unit_scale": True, "dynamic_ncols": True, "mininterval": interval} | options
        return tqdm(desc=title, file=self.terminal, disable=self.silent, **options)

    def fail(self, sentence: object) -> int:
        """Say one sentence about what the user gave; returns the exit status for it.

        A silent rank says a LauncherError.
        """
        say = self.say_by_any_rank if isinstance(sentence, LauncherError) else self.say
        say(f"error: {sentence}")
        return REFUSED

    def _crashed(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        traceback.print_exception(kind, error, trace)
        if not self.names_crash:
            return
        what = str(error).strip().splitlines()
        self.say_by_any_rank(f"{kind.__name__}: {what[0] if what else ''} (traceback in {self.log_file})")


def _log_stream(descriptor: int) -> TextIO:
    """What a killed run printed last is in its log, as each line is written at once."""
    raw = _Lossy(descriptor, "w", closefd=False)
    return _Log(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
