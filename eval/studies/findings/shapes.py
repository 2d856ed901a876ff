"""What a study's own files hold, beside its registration: whatever else stands there is refused."""

from typing import Any, Literal, NotRequired, TypedDict

At = Literal["shared rate", "best rate", "equal budget"]
Number = float | None


class Interval(TypedDict):
    """Nats per token."""

    value: Number
    low: Number
    high: Number


class Difference(TypedDict):
    """Between two designs, in nats per token."""

    difference: Number
    low: Number
    high: Number


class WrittenDown(TypedDict):
    """An entry of projections.json: what was foretold of a size."""

    size: str
    design: str
    value: float
    low: float
    high: float
    sizes: list[str]
    time: str


class Projection(TypedDict):
    """The same beside what came."""

    size: str
    design: str
    sizes: list[str]
    time: str
    foretold: Interval
    came: Interval | None


class Rules(TypedDict):
    """Those of the study."""

    confidence: float
    equivalent_within: float
    gate: float
    sequential: bool
    most_seeds: int
    tries: int


class Size(TypedDict):
    """What was trained at a size."""

    size: str
    is_settled: bool
    tokens: int
    flops: float
    shared_rate: str
    rates: dict[str, dict[str, float]]
    best_rates: dict[str, str | None]
    notes: list[str]


class Verdict(TypedDict):
    """On a design at a size."""

    at: At
    rate: str
    baseline: str
    baseline_rate: str
    word: str
    difference: Number
    seeds: int | None
    documents: int | None
    low: Number
    high: Number
    p_value: Number
    could_show: Number
    planned: int
    failed: dict[str, str]
    baseline_failed: dict[str, str]


class Cost(TypedDict):
    """Of a design and of the baseline."""

    design: Number
    baseline: Number


class Row(TypedDict):
    """A design at a size."""

    size: str
    design: str
    state: str
    note: str
    verdicts: list[Verdict]
    cost: dict[str, Cost] | None
    speed_up: Interval | None
    passes_gate: bool | None


class Part(TypedDict):
    """Of a composite."""

    size: str
    part: str
    alone: Difference
    to_the_others: Difference


class Run(TypedDict):
    """One that has ended, or that comes."""

    size: str
    design: str
    rate: str
    seed: int
    learning_rate: float
    role: str
    status: str | None
    reason: str
    val_loss: Number
    folder: str | None
    wall_time_s: Number


class ResultsFile(TypedDict):
    """results.json."""

    study: str
    done: bool
    baseline: str
    rules: Rules
    seeds: list[int]
    selection_seeds: list[int]
    looks: dict[str, int]
    sizes: list[Size]
    target_flops: Number
    rows: list[Row]
    parts: list[Part]
    projections: list[Projection]
    runs: list[Run]
    registration: NotRequired[Any]


def contradiction(content: ResultsFile) -> str | None:
    """In what parts of results.json speak of what others do not know, in words; None where all fits."""
    sizes = {one["size"]: one for one in content["sizes"]}
    designs = dict.fromkeys(row["design"] for row in content["rows"])
    rows = [(row["size"], row["design"]) for row in content["rows"]]
    if sorted(rows) != sorted((size, design) for size in sizes for design in designs):
        return "its rows are not one for each size and design"
    for name, size in sizes.items():
        if name not in content["looks"]:
            return f"looks says nothing of size {name}"
        for design in (content["baseline"], *designs):
            if design not in size["rates"] or design not in size["best_rates"]:
                return f"size {name} has no rates of {design}"
    for run in content["runs"]:
        if run["size"] not in sizes or run["rate"] not in sizes[run["size"]]["rates"].get(run["design"], {}):
            return f"one of its runs is {run['design']} at size {run['size']}, rate {run['rate']}"
    return None
