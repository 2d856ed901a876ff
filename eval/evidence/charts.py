"""Line charts as SVG geometry: what the report's template draws and its script reads, no more than that."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 70, 16, 14, 40  # px
BUCKETS_SIZE = (400, 260)  # px


class Style(NamedTuple):
    """How a run looks in every chart: its title, palette index (0: the baseline's), SVG dashes."""

    title: str
    colour: int
    dashes: str


class Mark(NamedTuple):
    """A difference above one bucket, with its interval's ends where it has one."""

    bucket: int
    difference: float
    low: float
    high: float


@dataclass
class Curve:
    """One run's line, y over trained tokens, perhaps with a fainter one behind it and points on top of it."""

    style: Style
    line: pd.Series
    faint: pd.Series = field(default_factory=lambda: pd.Series(dtype=float))
    points: pd.Series = field(default_factory=lambda: pd.Series(dtype=float))
    diverged: bool = False


def smooth(values: pd.Series) -> pd.Series:
    """Mean over a hundredth of the curve around each point: unlike a trailing average, it does not lag."""
    return values.rolling(max(1, len(values) // 100), center=True, min_periods=1).mean()


def thin(values: pd.Series, most: int) -> pd.Series:
    """At most `most` points of a curve: the lowest and highest of each stretch, so that spikes survive."""
    if len(values) <= most:
        return values
    numbers = values.to_numpy()
    kept = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), most // 2 - 1):
        kept |= {int(stretch[np.argmin(numbers[stretch])]), int(stretch[np.argmax(numbers[stretch])])}
    return values.iloc[sorted(kept)]


def ticks(low: float, high: float, about: int) -> list[float]:
    """At most `about` + 1 round numbers from low to high."""
    step = 10.0 ** math.floor(math.log10((high - low) / about))
    step *= next(multiple for multiple in (1, 2, 5, 10) if (high - low) / (multiple * step) <= about)
    return [float(f"{n * step:.10g}") for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def short_number(value: float) -> str:
    """1.5M for 1500000."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def late_range(curves: list[Curve]) -> tuple[float, float]:
    """The curves' reach, with zero, after a tenth of the longest: early on they say least and differ most."""
    start = 0.1 * max(curve.line.index.max() for curve in curves)
    # A diverged run must not flatten the others.
    lines = [curve.line for curve in curves if not curve.diverged] or [curve.line for curve in curves]
    late = pd.concat([line[line.index > start] if line.index.max() > start else line for line in lines])
    return min(0.0, late.min()), max(0.0, late.max())


def line_chart(
    title: str,
    curves: list[Curve],
    *,
    y_range: tuple[float, float],
    y_label: str = "",
    floors: dict[str, float] | None = None,
    size: tuple[int, int] = (960, 420),
) -> dict[str, Any]:
    """Geometry of one chart in px: axes, ticks, paths and the numbers that the tooltip shows.

    `floors` are dashed horizontal lines. What lies outside `y_range` is cut off by the template's clip path.
    """
    width, height = size
    left, right, top, bottom = MARGIN_LEFT, width - MARGIN_RIGHT, MARGIN_TOP, height - MARGIN_BOTTOM
    x_high = max(float(curve.line.index.max()) for curve in curves)
    y_low, y_high = y_range
    # A flat curve still needs a range to stand in.
    padding = 0.05 * (y_high - y_low) or 0.05 * abs(y_high) or 1.0
    y_low, y_high = y_low - padding, y_high + padding

    def x_px(x: float) -> float:
        return round(left + (right - left) * x / x_high, 1)

    def y_px(y: float) -> float:
        return round(bottom - (bottom - top) * (y - y_low) / (y_high - y_low), 1)

    def path(values: pd.Series) -> str:
        return "M" + "L".join(f"{x_px(x)},{y_px(y)}" for x, y in values.items()) if len(values) else ""

    drawn, hover = [], []
    for curve in curves:
        line = thin(curve.line, most=width)  # more than one point per px cannot be seen
        end = x_px(line.index[-1]), min(max(y_px(line.iloc[-1]), top), bottom)
        drawn.append(
            {
                **curve.style._asdict(),
                "path": path(line),
                "faint": path(thin(curve.faint, most=width)),
                "points": [(x_px(x), y_px(y), f"{y:.4f}") for x, y in curve.points.items()],
                "diverged": end if curve.diverged else None,
            }
        )
        rounded = [float(f"{y:.5g}") for y in line]
        hover.append({**curve.style._asdict(), "x": [int(x) for x in line.index], "y": rounded})
    return {
        "title": title,
        "y_label": y_label,
        "width": width,
        "height": height,
        "left": left,
        "right": right,
        "top": top,
        "bottom": bottom,
        "x_ticks": [(x_px(x), short_number(x)) for x in ticks(0, x_high, about=6)],
        "y_ticks": [(y_px(y), f"{y:.6g}") for y in ticks(y_low, y_high, about=height // 60)],
        "zero": y_px(0) if y_low < 0 < y_high else None,
        "floors": [(y_px(floor), f"{name} {floor:.2f}") for name, floor in (floors or {}).items()],
        "curves": drawn,
        "hover": {"width": width, "left": left, "right": right, "xHigh": x_high, "curves": hover},
    }


def interval_chart(
    x_label: str, y_label: str, buckets: list[str], marks: list[tuple[Style, list[Mark]]]
) -> dict[str, Any]:
    """Geometry of differences with their intervals, in px: a place on the x axis for each bucket, zero amid.

    The runs of one bucket stand side by side, in the order given. The dashes are the intervals'.
    """
    width, height = BUCKETS_SIZE
    left, right, top, bottom = MARGIN_LEFT, width - MARGIN_RIGHT, MARGIN_TOP, height - MARGIN_BOTTOM
    ends = [end for _, of_run in marks for mark in of_run for end in mark[1:] if not math.isnan(end)]
    reach = 1.1 * max(map(abs, ends), default=0.0) or 1.0
    place = (right - left) / len(buckets)

    def x_px(bucket: float) -> float:
        return round(left + place * bucket, 1)

    def y_px(y: float) -> float:
        return round((top + bottom) / 2 - (bottom - top) / 2 * y / reach, 1)

    drawn = [
        {
            **style._asdict(),
            "marks": [
                {
                    # the middle six tenths of a place are the runs', the rest parts the buckets
                    "x": x_px(mark.bucket + 0.2 + 0.6 * (number + 0.5) / len(marks)),
                    "y": y_px(mark.difference),
                    "ends": None if math.isnan(mark.low) else (y_px(mark.low), y_px(mark.high)),
                    "label": f"{style.title}, {buckets[mark.bucket]}: {mark.difference:+.4f}",
                }
                for mark in of_run
            ],
        }
        for number, (style, of_run) in enumerate(marks)
    ]
    return {
        "x_label": x_label,
        "y_label": y_label,
        "width": width,
        "height": height,
        "left": left,
        "right": right,
        "top": top,
        "bottom": bottom,
        "x_ticks": [(x_px(number + 0.5), bucket) for number, bucket in enumerate(buckets)],
        "y_ticks": [(y_px(y), f"{y:+.6g}" if y else "0") for y in ticks(-reach, reach, about=5)],
        "zero": y_px(0),
        "curves": drawn,
    }
