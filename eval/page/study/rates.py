"""What a study tried to find each design's best rate."""

from collections.abc import Iterator, Mapping
from html import escape
from statistics import fmean

from plotly import graph_objects as go

from ...studies.findings.reading import StudyRecord, StudyRun, StudySize
from ..blocks import Chart, Section, Sentences
from .words import listed


def rate_section(record: StudyRecord, colours: Mapping[str, str]) -> Section:
    """A chart for each size whose runs chose a rate, the largest first, and what has to be known of them."""
    blocks: list[Chart | Sentences] = []
    for number, size in reversed([*enumerate(record.sizes)]):
        if chart := rate_chart(record, size, colours, f"study-rates-{number}"):
            blocks.append(chart)
        lines = [*_chosen(size), *_failed(record, size), *size.notes]
        if lines and len(size.rates[record.baseline]) > 1:
            blocks.append(Sentences(lines, f"Rates at size {size.size}"))
    return Section("study-rates", "What was tried for the rates", [*blocks])


def rate_chart(record: StudyRecord, size: StudySize, colours: Mapping[str, str], name: str) -> Chart | None:
    """Mean loss of the selection seeds over the peak learning rate, a line for each design; its best rate is
    a star. None while no run has ended."""
    figure = go.Figure()
    for design, rates in size.rates.items():
        tried = {rate: _selection(record, size.size, design, rate) for rate in rates}
        means = {
            rate: fmean(run.val_loss for run in runs)
            for rate, runs in tried.items()
            if runs and all(run.is_finished for run in runs)
        }
        if not means:
            continue
        order = sorted(means, key=lambda rate: rates[rate])
        best = size.best_rates[design]
        each = [run for rate in order for run in tried[rate]]
        figure.add_scatter(
            x=[run.learning_rate for run in each],
            y=[run.val_loss for run in each],
            mode="markers",
            name=escape(design),
            legendgroup=design,
            showlegend=False,
            opacity=0.45,
            marker={"color": colours[design], "size": 5},
            customdata=[run.seed for run in each],
            hovertemplate="seed %{customdata}: %{y:.4f}<extra>%{fullData.name}</extra>",
        )
        figure.add_scatter(
            x=[rates[rate] for rate in order],
            y=[means[rate] for rate in order],
            mode="lines+markers",
            name=escape(design),
            legendgroup=design,
            line={"color": colours[design], "width": 2},
            marker={
                "color": colours[design],
                "symbol": ["star" if rate == best else "circle" for rate in order],
                "size": [14 if rate == best else 7 for rate in order],
            },
            customdata=[*map(escape, order)],
            hovertemplate="%{customdata}: %{y:.4f}<extra>%{fullData.name}</extra>",
        )
    if not figure.data:
        return None
    peaks = sorted(size.rates[record.baseline].values())
    figure.update_layout(
        hovermode="closest",
        xaxis={
            "title": "peak learning rate",
            "type": "log",
            "tickvals": peaks,
            "ticktext": [f"{peak:g}" for peak in peaks],
        },
        yaxis_title="validation loss, nats per token",
    )
    seeds = f"mean of {len(record.selection_seeds)} selection seed(s)"
    return Chart(
        name,
        f"Loss over the peak learning rate at size {size.size}, {seeds}",
        figure,
        "A line for each design over the rates that were tried; small marks are single seeds, a star is the "
        "rate that was chosen.",
    )


def _selection(record: StudyRecord, size: str, design: str, rate: str) -> list[StudyRun]:
    """The runs of a rate that have to have ended before it can be chosen."""
    return [
        run
        for run in record.runs
        if (run.size, run.design, run.rate, run.role) == (size, design, rate, "selection")
    ]


def _chosen(size: StudySize) -> Iterator[str]:
    for best in dict.fromkeys(size.best_rates.values()):
        names = [name for name, rate in size.best_rates.items() if rate == best and len(size.rates[name]) > 1]
        if names:
            yield f"{listed(names)}: " + ("still open" if best is None else f"lowest at {best}")


def _failed(record: StudyRecord, size: StudySize) -> Iterator[str]:
    """Rates that were not chosen because a run failed there."""
    for design, rates in size.rates.items():
        for rate in rates:
            runs = _selection(record, size.size, design, rate)
            failed = [run for run in runs if run.status and not run.is_finished]
            if failed:
                yield f"{design} at {rate}: {len(failed)} of {len(runs)} failed ({failed[0].reason})"
