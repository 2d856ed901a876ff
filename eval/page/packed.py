"""What the page's script unpacks: the plotting library and the charts, compressed into texts."""

import base64
import gzip
import json
import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from .blocks import Chart

DIGITS = 6
"""Significant digits of every number in a chart: a screen shows four."""


@cache
def packed_library() -> str:
    """Plotly's script with its licence, 4.8 MB, as 2 MB of text."""
    return packed(get_plotlyjs())


def packed_charts(charts: Iterable[Chart]) -> str:
    """All charts of a page by their names, without what the page gives to every chart alike."""
    content = {
        chart.name: {
            **_without_theme(chart.figure.to_dict()),
            # The figure has the first quantity itself.
            "axes": {title: None if not at else x for at, (title, x) in enumerate(chart.axes.items())},
            "logs": chart.logs,
        }
        for chart in charts
    }
    return packed(json.dumps(_rounded(content), separators=(",", ":"), allow_nan=False))


def packed(text: str) -> str:
    """gzip as base64, the same for the same text."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()


def _without_theme(figure: dict[str, Any]) -> dict[str, Any]:
    layout = {key: value for key, value in figure["layout"].items() if key != "template"}
    return {"data": figure["data"], "layout": layout}


def _rounded(content: Any) -> Any:
    """Plain JSON with few digits, which compresses best; None for what is not finite.

    Plotly has arrays as the base64 of their bytes, which hardly compress.
    """
    if isinstance(content, dict):
        if "bdata" in content:
            numbers = np.frombuffer(base64.b64decode(content["bdata"]), np.dtype(content["dtype"]))
            shape = [int(size) for size in str(content.get("shape", len(numbers))).split(",")]
            return _rounded(numbers.reshape(shape).tolist())
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list | tuple | np.ndarray):
        return [_rounded(value) for value in content]
    if isinstance(content, float | np.floating):
        if not math.isfinite(content):
            return None
        number = float(f"{content:.{DIGITS}g}")
        return int(number) if number.is_integer() else number
    return int(content) if isinstance(content, np.integer) else content
