"""The first study's published table says what its files hold."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "results" / "prose.tar.xz"
SIZE = "6x128"


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """The JSON files of the study by their names in the archive."""
    with tarfile.open(KEPT) as archive:
        names = [
            name for name in archive.getnames() if name.startswith("studies/") and name.endswith(".json")
        ]
        return {name: json.load(archive.extractfile(name)) for name in names}  # type: ignore[arg-type]


def intervals(row: dict[str, Any]) -> list[str]:
    """The differences of a design, at the shared rate and at its best, as the pages print them."""
    return [
        f"{verdict['difference']:+.4f} [{verdict['low']:+.4f}, {verdict['high']:+.4f}]"
        for verdict in row["verdicts"]
    ]


def words(row: dict[str, Any]) -> list[str]:
    """The verdicts of a design, without what could have been shown."""
    return [verdict["word"].partition(" (")[0] for verdict in row["verdicts"]]


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_table_of_the_first_study_is_that_of_its_files(kept: dict[str, Any], page: str) -> None:
    text = (ROOT / page).read_text()
    rows = [
        row for row in kept["studies/prose/results.json"]["rows"] if row["size"] == SIZE and row["verdicts"]
    ]
    assert len(rows) == 5
    for row in rows:
        shared, best = intervals(row)
        assert f"| `{row['design']}` | {shared} | {best} | {', '.join(words(row))} |" in text


def test_the_first_study_was_registered_before_its_runs(kept: dict[str, Any]) -> None:
    registration = kept["studies/prose/registration.json"]
    text = (ROOT / "docs" / "results.md").read_text()
    assert registration["time"] in text and registration["sha256"] in text
    assert registration["there_before"] == [] and registration["departures"] == []
    ended = [file["time"] for name, file in kept.items() if name.startswith("studies/prose/cells/")]
    assert min(ended) > registration["time"]
    assert f"{len(ended)} finished runs" in text


def test_the_table_of_the_smaller_size_is_that_of_its_files(kept: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    results = kept["studies/prose_sizes/results.json"]
    rows = [row for row in results["rows"] if row["size"] == "3x64"]
    assert len(rows) == 6
    rates = {"1x": "6e-3", "2x": "1.2e-2"}
    for row in rows:
        shared, best = intervals(row)
        rate = rates[row["verdicts"][1]["rate"]]
        assert f"| `{row['design']}` | {shared} | {rate}: {best} | {', '.join(words(row))} |" in text
        speed, steps = row["speed_up"], row["cost"]["step_s"]["ratio"]
        estimate = f"{speed['value']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}]"
        in_compute = speed["value"] * steps
        assert f"| `{row['design']}` | {estimate} | {steps:.2f} | {in_compute:.2f} |" in text
    cells = [name for name in kept if name.startswith("studies/prose_sizes/cells/3x64_")]
    assert f"All its {len(cells)} runs at `3x64` have ended" in text
    assert all(kept[name]["status"] == "finished" for name in cells)
    registration = kept["studies/prose_sizes/registration.json"]
    assert registration["time"] in text and registration["sha256"][:16] in text
    assert min(kept[name]["time"] for name in cells) > registration["time"]


def test_looking_at_the_larger_size_again_changes_one_verdict(kept: dict[str, Any]) -> None:
    """The second study corrects for more comparisons of the same runs, and the page says what that does."""
    first, second = (
        {row["design"]: row for row in kept[f"studies/{name}/results.json"]["rows"] if row["size"] == SIZE}
        for name in ("prose", "prose_sizes")
    )
    judged = [design for design, row in first.items() if row["verdicts"]]
    changed = [
        (design, number)
        for design in judged
        for number in range(2)
        if words(first[design])[number] != words(second[design])[number]
    ]
    assert changed == [("value_residual", 0)]
    text = (ROOT / "docs" / "results.md").read_text()
    assert (
        f"`value_residual` at the shared rate, {intervals(second['value_residual'])[0]}, is not shown" in text
    )
