"""What a study found, in words: a headline that a tired reader understands, and what it rests on."""

import math
from collections.abc import Iterable, Sequence

from ...studies.findings.projection import Estimate
from ...studies.findings.reading import StudyRecord, StudySize
from ...studies.findings.results import Row
from ...studies.findings.verdicts import overall
from ..blocks import Section, Sentences

ORDER = ("better", "worse", "equivalent", "not shown")
"""Of verdicts in the headline; others follow."""


def write_headline(record: StudyRecord) -> str:
    """One sentence on the largest size that is done: which designs differ, and what could have been shown."""
    ended = sum(run.status is not None for run in record.runs)
    largest = record.largest
    if largest is None:
        return f"{record.name}: nothing is judged yet; {ended} of {len(record.runs)} runs have ended."
    rows = [row for row in record.rows_of(largest.size) if not record.is_noise(row.design)]
    so_far = "" if record.is_done else f" so far, with {ended} of {len(record.runs)} runs,"
    seeds = max((verdict.planned for row in rows for verdict in row.verdicts), default=0)
    counted = "1 seed" if seeds == 1 else f"{seeds} paired seeds"
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_word(row), []).append(row)
    ordered = sorted(groups.items(), key=lambda one: _place(one[0]))
    said = "; ".join(_phrase(word, group, record.baseline) for word, group in ordered)
    return f"At size {largest.size}{so_far or ','} {counted}: {said or 'nothing but noise was measured'}."


def found_section(record: StudyRecord) -> Section:
    """What was asked, what was found and what could have been."""
    return Section("study", f"Study {record.name}", [Sentences([*_asked(record), *_found(record)])])


def millions(count: float) -> str:
    """A number of tokens for readers: 1.64 million."""
    for size, name in ((1e9, " billion"), (1e6, " million")):
        if count >= size:
            return f"{count / size:.3g}{name}"
    return f"{count:,.0f}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def difference(row: Row) -> str:
    """Of a row's last verdict, with its interval; empty where there is none."""
    verdict = row.last
    if verdict is None or verdict.effect is None:
        return ""
    return estimated(Estimate(verdict.effect.estimate, verdict.low, verdict.high))


def estimated(estimate: Estimate) -> str:
    """`-0.0123 [-0.0200, -0.0046]`, without an interval where the noise was not measured."""
    text = f"{estimate.value:+.4f}"
    if math.isfinite(estimate.high - estimate.low):
        text += f" [{estimate.low:+.4f}, {estimate.high:+.4f}]"
    return text


def could_show(rows: Iterable[Row]) -> str:
    """The smallest true differences that the rows' comparisons show; empty where noise was not measured."""
    known = [row.last.could_show for row in rows if row.last and math.isfinite(row.last.could_show)]
    if not known:
        return ""
    low, high = f"{min(known):.4f}", f"{max(known):.4f}"
    return low if low == high else f"{low} to {high}"


def _word(row: Row) -> str:
    return overall(row.verdicts) if row.verdicts else f"{row.state} {row.note}".strip()


def _place(word: str) -> int:
    """What was found stands before what was not."""
    return next((place for place, start in enumerate(ORDER) if word.startswith(start)), len(ORDER))


def _phrase(word: str, rows: Sequence[Row], baseline: str) -> str:
    names, be = listed([row.design for row in rows]), "is" if len(rows) == 1 else "are"
    each = (
        difference(rows[0]) if len(rows) == 1 else listed([f"{row.design} {difference(row)}" for row in rows])
    )
    if word in ("better", "worse"):
        return f"{names} {be} {word} than {baseline} ({each} nats per token)"
    if word.startswith("equivalent"):
        return f"{names} {be} {word} nats per token to {baseline} ({each})"
    if word == "not shown":
        shown = could_show(rows)
        return f"{names} {be} not shown to differ from {baseline}" + (
            f" (could have shown {shown} nats per token)" if shown else ""
        )
    return f"{names}: {word}"


def _asked(record: StudyRecord) -> list[str]:
    designs = [name for name in record.designs if not record.is_noise(name)]
    sizes = listed([f"{one.size} ({millions(one.tokens)} tokens per run)" for one in record.sizes])
    said = [f"{listed(designs)} beside {record.baseline}, at {_sizes(record.sizes)} {sizes}."]
    seeds = f"Judged on {_seeds(record.seeds)}"
    if record.selection_seeds:
        seeds += (
            f"; each design's best rate was chosen on {_seeds(record.selection_seeds)}, which are not judged"
        )
    rules = record.rules
    said.append(f"{seeds}.")
    said.append(
        f"Intervals hold at {100 * rules.confidence:g} %, for all looks so far at once; a difference within "
        f"{rules.equivalent_within:g} nats per token counts as none. Below zero is better."
    )
    return said


def _found(record: StudyRecord) -> list[str]:
    said = []
    for size in reversed(record.sizes):
        rows = [row for row in record.rows_of(size.size) if row.verdicts and not record.is_noise(row.design)]
        if rows and (shown := could_show(rows)):
            said.append(
                f"Power at size {size.size}: four of five such studies would show a true difference of "
                f"{shown} nats per token."
            )
    return said


def _sizes(sizes: Sequence[StudySize]) -> str:
    return "size" if len(sizes) == 1 else "sizes"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {listed([str(seed) for seed in seeds])}"
