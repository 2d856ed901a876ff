"""Draws a page anew when the files that it shows have changed."""

import hashlib
import re
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.redaction import redact
from training.watch.standing import DEAD

from .sources import Reading, Sources

POLL_S = 2.0
"""Seconds between two looks at the files."""
REST = 4
"""After a page that took a second to draw, this many seconds pass before the next: training has the CPU."""
WATCHED_S = 30.0
"""Seconds after the last question of a browser within which pages are drawn anew."""
LIBRARY = re.compile(rb'(<script type="text/plain" id="library">)[^<]*')
"""Two thirds of a page, which never change."""
KEPT = 20
"""Sentences on runs that ended."""


@dataclass(frozen=True)
class Snapshot:
    """A page, and what a browser that shows it has to know.

    Attributes:
        page: HTML in UTF-8.
        sections: the same without the plotting library, which a browser that shows the page has.
        state: `version` of the page, when it was `updated` (seconds since 1970), how many runs are
            `under_way`, when those `ended` that have since the start and a sentence on each, and the
            `problem` where the last page could not be drawn.
    """

    page: bytes
    sections: bytes
    state: dict[str, Any]


class Follower:
    """The page as it is now, for any number of readers.

    Args:
        sources: what the page is about.
        draw: makes the page.
        write: is given what was read after each new page, to write a file; None for none.
        say: is told of runs that ended, and of what could not be drawn.

    Raises UserError or OSError where the first page cannot be drawn.
    """

    def __init__(
        self,
        sources: Sources,
        draw: Callable[[Reading], str],
        write: Callable[[Reading], object] | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        self.sources, self.draw, self.write, self.say = sources, draw, write, say
        self.ended: list[tuple[float, str]] = []
        self._stamps = sources.stamps()
        reading = sources.read(strictly=True)
        self._under_way, self._study_was_done = (
            reading.under_way,
            bool(reading.study and reading.study.is_done),
        )
        self.snapshot = self._draw(reading)
        self._asked = time.monotonic()
        self._stop = threading.Event()

    def current(self) -> Snapshot:
        """For a browser: as long as any asks, pages are drawn."""
        self._asked = time.monotonic()
        return self.snapshot

    def follow(self) -> None:
        """Look at the files until `stop`; nothing that they hold ends it."""
        rest = POLL_S
        while not self._stop.wait(rest):
            began = time.monotonic()
            if self.write is None and began - self._asked > WATCHED_S:
                continue
            self.refresh()
            rest = max(POLL_S, REST * (time.monotonic() - began))

    def stop(self) -> None:
        """End `follow`."""
        self._stop.set()

    def refresh(self) -> bool:
        """Draw the page anew where files have changed; gives whether that was so."""
        try:
            stamps = self.sources.stamps()
            if stamps == self._stamps:
                return False
            # Noted before anything is read: what changes meanwhile is seen at the next look.
            self._stamps = stamps
            reading = self.sources.read()
            self._note_ends(reading)
            self.snapshot = self._draw(reading)
        except Exception as error:
            if not isinstance(error, UserError | OSError):
                traceback.print_exc()
            problem = redact(f"the page could not be drawn anew: {error}")
            self.say(problem)
            self.snapshot = replace(self.snapshot, state=self.snapshot.state | {"problem": problem})
        return True

    def _draw(self, reading: Reading) -> Snapshot:
        page = self.draw(reading).encode()
        if self.write is not None:
            self.write(reading)
        return Snapshot(
            page,
            LIBRARY.sub(rb"\1", page),
            {
                "version": hashlib.sha256(page).hexdigest()[:16],
                "updated": time.time(),
                "under_way": len(reading.under_way),
                "ended": self.ended[-KEPT:],
                "problem": "",
            },
        )

    def _note_ends(self, reading: Reading) -> None:
        for folder in sorted(self._under_way - reading.under_way):
            self._note(how_it_ended(folder, reading))
        study = reading.study
        if study is not None and study.is_done and not self._study_was_done:
            self._note(f"the study {study.name} is done")
        self._under_way = reading.under_way
        self._study_was_done = bool(study and study.is_done)

    def _note(self, sentence: str) -> None:
        self.ended.append((time.time(), sentence))
        self.say(sentence)


def how_it_ended(folder: Path, reading: Reading) -> str:
    """A sentence on a run that is not trained any more."""
    record = reading.runs.get(folder)
    if record is None:
        return f"{folder.name} is gone, or cannot be read"
    status, step = record.summary["status"], record.summary.get("step")
    if status == "finished":
        return f"{folder.name} has finished: validation loss {record.val_loss:.4f} nats per token"
    if status == DEAD:
        return f"{folder.name} is not trained any more: its process ended without a word at step {step}"
    return f"{folder.name} has ended: {status} at step {step}"
