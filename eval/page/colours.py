"""The colour of each design, the same on the whole page."""

from collections.abc import Iterable

COLOURS = 8
"""Of the page's style sheet, `--c0` to `--c7`; the first is the baseline's."""


def colours_of(names: Iterable[str], baseline: str) -> dict[str, str]:
    """A style sheet's colour for each design: the baseline's own, and for the others in their order."""
    others = [name for name in dict.fromkeys(names) if name != baseline]
    found = {name: f"var(--c{1 + number % (COLOURS - 1)})" for number, name in enumerate(others)}
    return {baseline: "var(--c0)", **found}
