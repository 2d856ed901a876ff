"""The dashboard as code: every panel shows what runs log, and nothing needs a server before it is sent."""

import base64
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import open_data
from eval.evidence.comparison import build_scorecard
from eval.evidence.metrics import TASK_METRICS
from eval.evidence.results import read_runs
from eval.slices.comparison import TITLES
from eval.tracked.differences import loss_differences, send_differences
from model.files import write_json
from tests.distributed import run_on_ranks
from tests.eval.tracked_runs import offline, server
from tests.training.test_reporter import after_step, begun
from tests.training.wandb_runs import no_account, of_kind, offline_folders, records, rows, summary_of
from tests.training.wandb_server import Run
from training.state import TrainState
from training.tracking.tracker import Tracker, TrackingConfig

__all__ = ["no_account", "offline", "server"]
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # of W&B itself
ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("wandb_dashboard", ROOT / "scripts" / "wandb_dashboard.py")
assert SPEC and SPEC.loader
dashboard = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(dashboard)

GROUPS = ("embedding", "layers_00-07", "layers_08-15", "layers_16-23", "head")
LATER = {
    *(f"eval/{metric.task}/{metric.key}" for metric in TASK_METRICS),
    *(f"slices/{kind}/0" for kind in TITLES),
    *(f"{norm}/{group}" for norm in ("grad_norm", "weight_norm") for group in GROUPS),
    *(f"diagnostics/{name}/3" for name in ("resid_rms", "branch_ratio", "update_ratio", "lens_loss")),
    "train/mfu",  # on a known GPU
    "difference/vanilla/val_loss",
}
"""What a run may have beside the metrics that each training logs."""


def logged(rank: int, folder: Path) -> None:
    """A run of two steps with a validation, over."""
    os.environ["WANDB_MODE"] = "offline"
    state = TrainState()
    report, _ = begun(folder, state)
    for _ in range(2):
        after_step(state, report)
    validation = open_data(report.recipe.data)[1]
    losses = np.full(len(validation.tokens) - 1, 2.5)
    state.note_validation(2.5, 1.25)
    report.validation(state, losses, validation)
    report.end(state, diverged=False, failure=None)
    report._tracker.wait()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """What a run logs, and what its summary has."""
    folder = tmp_path_factory.mktemp("logged")
    run_on_ranks(logged, 1, folder)
    (found,) = map(records, offline_folders(folder))
    metrics = {name for row in rows(found).values() for name in row}
    return metrics | LATER, {*summary_of(found), "gpu_hours"}


def panels(spec: Any) -> list[dict[str, Any]]:
    """All panels of a workspace or a report, wherever they lie in it."""
    if isinstance(spec, dict):
        own = [spec] if "viewType" in spec and "config" in spec else []
        return own + [panel for value in spec.values() for panel in panels(value)]
    return [panel for value in spec for panel in panels(value)] if isinstance(spec, list) else []


def test_each_panel_shows_what_runs_log(
    names: tuple[set[str], set[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, summary = names
    assert dashboard.main(["--dry_run", "--project", "norms"]) == 0
    spec = json.loads(capsys.readouterr().out)
    for made in (spec["workspace"], spec["report"]):
        lines = [panel["config"] for panel in panels(made) if panel["viewType"] == "Run History Line Plot"]
        assert len(lines) == 19
        for line in lines:
            assert line["xAxis"] == "tokens" in metrics
            if line["useMetricRegex"]:
                assert any(re.search(line["metricRegex"], name) for name in metrics), line["metricRegex"]
            else:
                assert line["metrics"] and {*line["metrics"]} <= metrics, line["metrics"]
        (bars,) = (panel["config"] for panel in panels(made) if panel["viewType"] == "Bar Chart")
        assert {name.removeprefix("summary:") for name in bars["metrics"]} <= summary
        assert '"evaluation"' in json.dumps(made)  # the table's name
    assert spec["workspace"]["project"] == "norms"
    columns = spec["workspace"]["spec"]["section"]["runSets"][0]["runFeed"]["columnPinned"]
    pinned = {name.removeprefix("summary:") for name in columns if name.startswith("summary:")}
    assert len(pinned) == 6 and pinned <= summary


def test_without_a_key_it_says_what_to_do(no_account: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard.main(["--entity", "us", "--dry_run"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["project"]["entityName"] == "us"
    assert dashboard.main(["--entity", "us"]) == 2
    sentence = "a dashboard needs W&B (no W&B key): run `wandb login`, or see with --dry_run what it would be"
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_a_server_is_sent_both_and_then_says_where(
    no_account: None, server: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dashboard.main(["--project", "norms"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    address = os.environ["WANDB_BASE_URL"]
    assert first.startswith(f"workspace: {address}/us/norms?nw=")
    assert second == f"report: {address}/us/norms/reports/NormLab--view"


FACTS = {
    "status": "finished", "step": 4, "steps": 4, "tokens": 256, "tokens_per_step": 64, "flops_per_token": 10,
    "init_seed": 1, "data_seed": 0, "precision": "fp32", "model": "1L 2H 8d", "val_fingerprint": "v",
    "source_fingerprint": "s", "parameters": 7,
}  # fmt: skip
LOSSES = {"vanilla": {2: 3.5, 4: 3.0}, "rmsnorm": {2: 3.25, 3: 3.125, 4: 3.0625}}


def compared(folder: Path, tracked: bool) -> list[Path]:
    """A run of the baseline and one of a candidate, whose W&B runs are over."""
    run_dirs = []
    for variant, losses in LOSSES.items():
        run_dir = folder / variant
        run_dir.mkdir()
        run_dirs.append(run_dir)
        lines = [{"kind": "val", "step": step, "tokens": 64 * step, "loss": v} for step, v in losses.items()]
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        tracker = Tracker(TrackingConfig(), run_dir, f"{variant}0", {}, print)
        summary = FACTS | {"variant": variant, "val_loss": losses[4], "wandb": tracker.noted}
        write_json(run_dir / "summary.json", summary)
        if tracked:
            for step, loss in losses.items():
                tracker.log("val", step, {"loss": loss})
            tracker.finish(summary)
            tracker.wait()
    return run_dirs


@pytest.mark.usefixtures("no_account", "offline")
def test_differences_to_the_baseline_are_rows_of_the_run(tmp_path: Path) -> None:
    run_dirs = compared(tmp_path, tracked=True)
    card = build_scorecard(read_runs(run_dirs))
    assert loss_differences(card) == {tmp_path / "rmsnorm": {2: -0.25, 4: 0.0625}}
    send_differences(card, print)
    send_differences(card, print)  # no doubles
    assert len(list((tmp_path / "vanilla/wandb").glob("offline-run-*"))) == 1
    _, part = map(records, sorted((tmp_path / "rmsnorm/wandb").glob("offline-run-*")))
    name = "difference/vanilla/val_loss"
    found = [(row["step"], row["tokens"], row[name]) for row in rows(part).values()]
    assert found == [(2, 128, -0.25), (4, 256, 0.0625)]
    assert summary_of(part)[name] == 0.0625
    assert of_kind(part, "run")[0]["run_id"] == "rmsnorm0"


@pytest.mark.usefixtures("offline")
def test_the_report_has_the_scorecard_and_the_baseline_is_pinned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dirs = compared(tmp_path, tracked=False)
    assert dashboard.main(["--dry_run", *map(str, run_dirs)]) == 0
    spec = json.loads(capsys.readouterr().out)
    markdown = [block for block in spec["report"]["spec"]["blocks"] if block["type"] == "markdown-block"]
    assert "rmsnorm" in markdown[0]["content"] and "+0.0625" in markdown[0]["content"]
    (runs,) = spec["workspace"]["spec"]["section"]["runSets"]
    assert "vanilla0" in base64.b64decode(runs["baselineRunId"]).decode()
    assert dashboard.main(["--dry_run", "--baseline", "rmsnrm", *map(str, run_dirs)]) == 2
    assert "did you mean" in capsys.readouterr().err
