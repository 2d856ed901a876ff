"""A W&B workspace and a report for a project: losses, differences, norms by depth, throughput, evaluation.

    python scripts/wandb_dashboard.py runs/vanilla runs/rmsnorm [--baseline vanilla] [--project normlab]

The runs given are compared with the baseline as the scorecard does: the report has its tables, and each run
gets a curve of its difference. With --dry_run nothing is sent: what would be is printed as JSON.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.checkout import refuse_other_checkout

refuse_other_checkout(__file__)

from eval.evidence.results import RunRecord, read_runs
from model.errors import UserError, print_error
from model.redaction import redact_output
from training.config.tracking import TrackingConfig

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import LinePlot, Report
    from wandb_workspaces.workspaces import Workspace

    from eval.evidence.comparison import Scorecard

LINES: dict[str, dict[str, tuple[str, ...]]] = {
    "Loss": {
        "training loss, nats per token": ("train/loss",),
        "validation loss, nats per token": ("val/loss",),
        "validation, bits per byte": ("val/bits_per_byte",),
    },
    "Training": {
        "gradient norm": ("train/grad_norm",),
        "learning rate": ("train/lr",),
    },
    "Throughput": {
        "tokens per second": ("train/tokens_per_s",),
        "MFU": ("train/mfu",),
        "seconds of a step": ("train/step_s",),
        "share of the step spent waiting for data": ("train/data_wait",),
    },
}
"""By section and title, metrics that are drawn over the tokens."""
PATTERNS: dict[str, dict[str, str]] = {
    "Norms by depth": {
        "gradient norm by group of layers": r"^grad_norm/.*",
        "weight norm by group of layers": r"^weight_norm/.*",
        "residual RMS by layer": r"^diagnostics/resid_rms/.*",
        "branch to stream, RMS": r"^diagnostics/branch_ratio/.*",
        "update to weight by layer": r"^diagnostics/update_ratio/.*",
        "logit-lens loss by layer": r"^diagnostics/lens_loss/.*",
    },
    "Evaluation": {
        "scores of tasks": r"^eval/.*",
        "validation loss by position": r"^slices/position/.*",
        "validation loss by token frequency": r"^slices/frequency/.*",
    },
}
"""By section and title, a regular expression for the metrics of a panel: runs differ in depth and tasks."""
TABLE = "evaluation"
"""The table of all scores, which each evaluated run has."""
SUMMARY_COLUMNS = ("val_loss", "val_bits_per_byte", "total_flops", "gpu_hours", "skipped_steps", "status")
"""Of the list of runs; W&B shows their difference to the pinned baseline beside them."""


def main(argv: list[str]) -> int:
    """Make the dashboard; returns the exit status: 0 made or printed, 2 refused."""
    options = parse(argv)
    try:
        records = read_runs(options.run_dirs)
        # Imported here: what is wrong with the folders is said before pandas and W&B are there.
        from eval.evidence.comparison import build_scorecard
        from eval.evidence.grouping import DEFAULT_BASELINE

        card = build_scorecard(records, options.baseline) if records else None
        settings = TrackingConfig(project=options.project).settings({}, first_noted(records))
        entity = options.entity or settings.get("entity")
        if not options.dry_run:
            check_server()
            entity = entity or default_entity()
        baseline = card.baseline if card else options.baseline or DEFAULT_BASELINE
        workspace = build_workspace(entity or "", settings["project"], baseline, baseline_id(card))
        report = build_report(entity or "", settings["project"], baseline, card)
        if options.dry_run:
            print(json.dumps({"workspace": spec_of(workspace), "report": spec_of(report)}, indent=2))
            return 0
        send(workspace, report, card)
    except (UserError, OSError) as error:
        return print_error(error)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python scripts/wandb_dashboard.py",
        description="Make a W&B workspace and a report of a project.",
    )
    parser.add_argument(
        "run_dirs", nargs="*", type=Path, metavar="RUN_DIR", help="runs whose differences are shown"
    )
    parser.add_argument(
        "--project", metavar="NAME", help="W&B project (default: that of the runs, or normlab)"
    )
    parser.add_argument(
        "--entity", metavar="NAME", help="W&B user or team (default: that of the runs, or yours)"
    )
    parser.add_argument("--baseline", metavar="NAME", help="variant to compare with (default: vanilla)")
    parser.add_argument(
        "--dry_run", action="store_true", help="print what would be made as JSON, without a server"
    )
    return parser.parse_args(argv)


def first_noted(records: list[RunRecord]) -> dict[str, Any]:
    """Project and entity as summary.json of the first run notes them."""
    noted = (records[0].summary.get("wandb") or {}) if records else {}
    return {key: noted[key] for key in ("project", "entity") if key in noted}


def check_server() -> None:
    """Raise UserError where there is no key or no server."""
    from training.tracking.wandb_run import offline_reason

    if reason := offline_reason():
        raise UserError(
            f"a dashboard needs W&B ({reason}): run `wandb login`, or see with --dry_run what it would be"
        )


def default_entity() -> str:
    """The user whose key is set, or their team."""
    import wandb

    return wandb.Api().default_entity or ""


def baseline_id(card: "Scorecard | None") -> str | None:
    """The id of the W&B run that is pinned as the baseline: the first of them that has one."""
    if card is None:
        return None
    records = card.runs[card.runs["baseline"]]["record"]
    noted = [record.summary.get("wandb") or {} for record in records]
    return next((of_run["id"] for of_run in noted if of_run.get("mode", "disabled") != "disabled"), None)


def line_plots(baseline: str) -> dict[str, list["LinePlot"]]:
    """By section its panels, over the tokens."""
    from wandb_workspaces.reports.v2 import LinePlot

    from eval.tracked.differences import difference_name

    title = f"validation loss less that of {baseline}, nats per token"
    lines: dict[str, dict[str, tuple[str, ...]]] = {
        **LINES,
        f"Difference to {baseline}": {title: (difference_name(baseline),)},
    }
    plots: dict[str, list[LinePlot]] = {}
    for section, panels in lines.items():
        plots[section] = [LinePlot(title=title, x="tokens", y=list(y)) for title, y in panels.items()]
    for section, patterns in PATTERNS.items():
        plots[section] = [
            LinePlot(title=title, x="tokens", metric_regex=pattern) for title, pattern in patterns.items()
        ]
    return plots


def build_workspace(entity: str, project: str, baseline: str, run_id: str | None) -> "Workspace":
    """The project's workspace: a section for each subject; the baseline, where it is known, is pinned."""
    from wandb_workspaces.reports.v2 import BarPlot, RunComparer, WeavePanelSummaryTable
    from wandb_workspaces.workspaces import RunsetSettings, Section, Workspace, WorkspaceSettings

    panels: dict[str, list[Any]] = {**line_plots(baseline)}
    panels["Loss"].append(BarPlot(title="final validation loss", metrics=["val_loss"]))
    panels["Evaluation"].append(WeavePanelSummaryTable(table_name=TABLE))
    panels["Runs"] = [RunComparer(diff_only=True)]
    columns = [f"summary:{name}" for name in SUMMARY_COLUMNS]
    return Workspace(
        entity=entity,
        project=project,
        name="NormLab",
        sections=[Section(name=name, panels=of_section, is_open=True) for name, of_section in panels.items()],
        settings=WorkspaceSettings(x_axis="tokens"),
        runset_settings=RunsetSettings(pinned_columns=columns, baseline_run=run_id),
    )


def build_report(entity: str, project: str, baseline: str, card: "Scorecard | None") -> "Report":
    """The report: the scorecard in words and tables, then the panels of each subject."""
    from wandb_workspaces.reports.v2 import (
        H1,
        H2,
        BarPlot,
        MarkdownBlock,
        PanelGrid,
        Report,
        Runset,
        TableOfContents,
        WeavePanelSummaryTable,
    )

    blocks: list[Any] = [H1(text="NormLab"), TableOfContents()]
    if card:
        from eval.evidence.tables import to_markdown

        blocks += [H2(text=f"Scorecard against {baseline}"), MarkdownBlock(text=to_markdown(card))]
    panels: dict[str, list[Any]] = {**line_plots(baseline)}
    panels["Loss"].append(BarPlot(title="final validation loss", metrics=["val_loss"]))
    panels["Evaluation"].append(WeavePanelSummaryTable(table_name=TABLE))
    for name, of_section in panels.items():
        # A run set that names the project would ask the server for it; without a name it is the report's.
        blocks += [H2(text=name), PanelGrid(runsets=[Runset(name="all runs")], panels=of_section)]
    return Report(entity=entity, project=project, title="NormLab", blocks=blocks, width="fluid")


def spec_of(made: "Workspace | Report") -> dict[str, Any]:
    """What W&B is sent, as JSON holds it."""
    return made._to_model().model_dump(mode="json", by_alias=True)


def send(workspace: "Workspace", report: "Report", card: "Scorecard | None") -> None:
    """Save both on the server, and the runs' differences in their W&B runs.

    Raises UserError with what the server says against it.
    """
    import wandb

    from eval.tracked.differences import send_differences

    def say(sentence: str) -> None:
        print(sentence, flush=True)

    try:
        if card:
            send_differences(card, say)
        workspace.save()
        say(f"workspace: {workspace.url}")
        report.save()
        say(f"report: {report.url}")
    except (wandb.Error, ValueError) as error:
        raise UserError(f"W&B does not take the dashboard: {' '.join(str(error).split())}") from error


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
