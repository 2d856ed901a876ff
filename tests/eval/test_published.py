"""The published table: its figures, its warning, and that nothing is ever subtracted from it."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from eval.evidence.published import COLUMNS, TABLE
from eval.scorecard import main

PROTOCOL = Path(__file__).parents[3] / "shared" / "PROTOCOL.md"
OWN_TASKS = {
    "wikitext2_windows": {"token_perplexity": 40.25},
    "lambada_windows": {"token_perplexity": 61.5},
    "published_validation": {"loss": 3.125, "loss_stderr": 0.002},
    "arc_easy": {"acc": 0.5125, "acc_stderr": 0.01},
}
MakeRun = Callable[..., Path]


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments), "--published"]) == 0
    return capsys.readouterr().out


def table_below(title: str, text: str) -> list[list[str]]:
    """The cells of the markdown table that follows a title, its head first."""
    lines = text[text.index(f"**{title}**") :].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def trained_on(run: Path, norm: str, **data: str) -> Path:
    (run / "recipe.yaml").write_text(yaml.safe_dump({"model": {"norm": norm}, "data": data}))
    return run


@pytest.fixture
def runs(make_run: MakeRun) -> list[Path]:
    """Two seeds of two variants on FineWeb, and one run on ClimbMix of another model."""
    fineweb = {"source": "HuggingFaceFW/fineweb", "subset": "sample-10BT"}
    folders = [
        trained_on(make_run(variant, seed, val_loss=loss + seed / 1000, tasks=OWN_TASKS), norm, **fineweb)
        for variant, norm, loss in (("vanilla", "layernorm", 3.1), ("rmsnorm", "rmsnorm", 3.0))
        for seed in (1, 2)
    ]
    large = make_run("prmsnorm", val_loss=2.25, model="24L 16H 1024d", tasks=OWN_TASKS, wall_time_s=20001.4)
    climbmix = {"source": "karpathy/climbmix-400b-shuffle", "files": "shard_{00000..00129}.parquet"}
    return [*folders, trained_on(large, "prmsnorm", **climbmix)]


def test_alone_the_table_is_printed_with_its_warning(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    head, *rows = table_below("Published results: norms and blocks", text)
    assert head == [
        "entry", "attempt", "val loss", "WikiText-2 windows ppl", "LAMBADA windows ppl",
        "ARC-Easy %", "HellaSwag %", "PIQA %", "WinoGrande %", "seconds",
    ]  # fmt: skip
    assert len(rows) == 13
    assert [
        "rmsnorm",
        "baseline",
        "2.2950",
        "44.75",
        "68.29",
        "54.97",
        "33.25",
        "64.36",
        "51.22",
        "20,389",
    ] in rows
    assert ["entrant D", "1", "diverged", *["-"] * 7] in rows
    others = table_below("Published results: other tasks", text)
    assert ["optimizer", "Muon", "2.1995"] in others
    assert ["learning-rate schedule", "other schedules", "2.20 to 2.215"] in others
    assert "single, unpaired runs on ClimbMix" in text and "0.0066 over seeds" in text
    assert "leaderboard as read on 2026-11-26" in text
    assert len({len(line) for line in text.splitlines() if line.startswith("| entrant")}) == 1


def test_neither_runs_nor_published_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2 and "required: RUN_DIR, or --published" in capsys.readouterr().err


@pytest.mark.skipif(not PROTOCOL.is_file(), reason=f"there is no {PROTOCOL}")
def test_the_figures_are_those_of_the_protocols_table() -> None:
    section = PROTOCOL.read_text().split("## Published results")[1]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    ours = pd.read_csv(TABLE, comment="#", dtype=str).fillna("")
    assert len(lines) == len(ours)
    entry = ""
    for line, (_, row) in zip(lines, ours.iterrows(), strict=True):
        first, attempt, *figures = (cell.strip() for cell in line.strip("|").split("|"))
        entry = first or entry
        diverged = figures[0] == "diverged"
        figures = ["" if cell in ("diverged", "-") else cell.replace(",", "") for cell in figures]
        assert [row["entry"], row["attempt"], *row[[*COLUMNS, "seconds"]]] == [entry, attempt, *figures]
        assert (row["status"] == "diverged") == diverged
    others = (TABLE.parent / "other_tasks_climbmix.csv").read_text()
    rest = section.split("The whole public table")[1].split("##")[0]
    for figure in re.findall(r"2\.\d+", rest):
        assert re.search(rf"\b{re.escape(figure)}\b", others), figure


def test_own_runs_stand_apart_by_their_data(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, *runs)
    published = table_below("Published results: norms and blocks", text)[0]
    head, *rows = table_below("Own runs on other data", text)
    columns = ["variant", "data", "val loss", "published val loss", *published[3:]]
    assert head == columns
    data = "HuggingFaceFW/fineweb sample-10BT"
    scores = ["40.25", "61.50", "51.25", "-", "-", "-", "123"]
    assert [row[1:] for row in rows] == [
        [data, "3.0015", "3.1250", *scores], [data, "3.1015", "3.1250", *scores],
    ]  # fmt: skip
    assert (
        f"rmsnorm 4L 4H 128d on {data}, vanilla 4L 4H 128d" in text and "cannot be set beside those" in text
    )
    head, *rows = table_below("Own runs on ClimbMix", text)
    assert head == columns and len(rows) == 1
    climbmix = "karpathy/climbmix-400b-shuffle shard_{00000..00129}.parquet"
    assert rows[0][1:4] == [climbmix, "2.2500", "3.1250"] and rows[0][-1] == "20,001"
    scores_table = table_below("Scores", text)
    for title in ("published val loss", "WikiText-2 windows ppl", "LAMBADA windows ppl"):
        assert title in scores_table[0]
    assert "3.1250 ± 0.0020" in scores_table[1]


def test_a_run_without_a_recipe_is_on_unknown_data(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, make_run("vanilla"))
    assert table_below("Own runs on other data", text)[1][1] == "unknown data"


def test_nothing_is_subtracted_from_a_published_row(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(io.StringIO(shown(capsys, *runs, "--format", "csv")))
    published, own = table[table["origin"] == "published"], table[table["origin"] == "run"]
    assert own["difference"].notna().any() and own["verdict"].notna().all()
    compared = [
        "difference",
        "low",
        "high",
        "p_value",
        "n",
        "paired_seeds",
        "interval",
        "verdict",
        "baseline",
    ]
    assert published[compared].isna().all().all()
    alone = main([*map(str, runs), "--format", "csv"]), capsys.readouterr().out
    pd.testing.assert_frame_equal(
        own.drop(columns=["origin", "data", "task", "attempt"]).reset_index(drop=True),
        pd.read_csv(io.StringIO(alone[1])),
        check_dtype=False,
        check_like=True,
    )
    text = shown(capsys, *runs)
    before = text[: text.index("**Published results")]
    main([*map(str, runs)])
    assert before.strip() == capsys.readouterr().out.strip(), "the scorecard is as it is without --published"
    after = text[text.index("**Published results") :]
    assert not re.search(r"(?<!\w)[+]\d|better|worse|not shown", after)


def test_csv_and_json_hold_the_table_too(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    alone = pd.read_csv(io.StringIO(shown(capsys, "--format", "csv")))
    entry = alone[(alone["name"] == "entrant B") & (alone["attempt"] == "1, best")].set_index("metric")[
        "value"
    ]
    assert entry["val_loss"] == 2.2592 and entry["winogrande_acc"] == 50.99 and entry["seconds"] == 20337
    assert alone[alone["status"] == "diverged"]["value"].isna().all()
    content = json.loads(shown(capsys, "--format", "json"))
    assert content.keys() == {"published"} and len(content["published"]["rows"]) == 13
    content = json.loads(shown(capsys, *runs, "--format", "json"))
    assert content["headline"] and len(content["rows"]) == 3
    diverged = next(row for row in content["published"]["rows"] if row["status"] == "diverged")
    assert all(diverged[key] is None for key in (*COLUMNS, "seconds"))
    assert [section["title"] for section in content["own_runs"]] == [
        "Own runs on ClimbMix",
        "Own runs on other data",
    ]
    assert content["own_runs"][0]["rows"][0]["wikitext_windows_ppl"] == 40.25
