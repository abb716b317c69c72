"""The report's plots, as the plain dicts that plotly.js draws. Colours of text and grid are the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.table import Row

Figure = dict[str, Any]
Metrics = list[dict[str, Any]]

# Readable on white and on near-black; the order keeps neighbours apart for colour-blind eyes.
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#e0518f", "#8b5cf6", "#14b8c4", "#ef5b4c", "#94a3b8")
_DASHES = ("solid", "dash", "dot", "dashdot")
MANY = 6
"""Lines of one plot; more want a legend beside it, and the width of the page."""
BEHIND = 0.35
"""Opacity of what another beats."""
MAX_POINTS = 1500  # a curve; more only makes the page heavy


@dataclass(frozen=True)
class Series:
    """One run as the plots need it: its short name, its metrics, its measured variants."""

    label: str
    metrics: Metrics
    rows: list[Row]
    left_out: frozenset[str]
    """The variants that its bundle does not hold."""


def legend(count: int) -> dict[str, Any]:
    """Over the plot there is room for the names of a few; beside it, on a wide page, for more."""
    beside = {"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"}
    return {"legend": beside} if count > MANY else {}


def curve(
    runs: Sequence[Series], plots: Sequence[tuple[str, str, str, float]], title: str, log: bool
) -> Figure | None:
    """Curves over the steps; None where no run has any.

    plots: (kind of the metrics line, its key, how to name it, factor). A noisy curve of kind "train" is drawn
    faint with its moving average over it.
    """
    traces = []
    for i, run in enumerate(runs):
        for j, (kind, key, words, factor) in enumerate(plots):
            points = [
                (m["step"], m[key] * factor) for m in run.metrics if m["kind"] == kind and _finite(m, key)
            ]
            if not points:
                continue
            name = f"{run.label}: {words}" if len(runs) > 1 else words
            colour = colour_of(runs, i, j)
            look = {"color": colour, "width": 2, "dash": _DASHES[j % 4] if len(runs) > 1 else "solid"}
            if kind == "train" and key != "lr":
                traces.append(
                    _line(name + ", each", points, {**look, "width": 1}, opacity=0.3, showlegend=False)
                )
                points = _smooth(points)
            mode = "lines+markers" if kind == "eval" else "lines"
            traces.append(_line(name, points, look, mode=mode))
    if not traces:
        return None
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "step"}},
            "yaxis": {"title": {"text": title}, "type": "log" if log else "linear"},
            "hovermode": "x unified",
            "showlegend": len({t["name"] for t in traces if t.get("showlegend", True)}) > 1,
        },
    }


def front_line(points: Sequence[tuple[float, float]], colour: str) -> list[dict[str, Any]]:
    """The edge of what nothing beats, x less and y more: it rises only where a point is. One has no edge."""
    ordered = sorted(set(points))
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [x for x, _ in ordered],
        "y": [y for _, y in ordered],
        "line": {"shape": "hv", "color": colour, "width": 1.5},
        "opacity": 0.7,
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [line] if len(ordered) > 1 else []


def level(y: float, colour: str, dash: str) -> dict[str, Any]:
    """A line across the plot."""
    place = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "layer": "below"}
    return {**place, "opacity": 0.7, "line": {"color": colour, "width": 1.5, "dash": dash}}


def _line(
    name: str, points: Sequence[tuple[int, float]], look: dict[str, Any], mode: str = "lines", **more: Any
) -> dict[str, Any]:
    kept = points[:: max(1, math.ceil(len(points) / MAX_POINTS))]
    if kept[-1] != points[-1]:
        kept = [*kept, points[-1]]
    hover = "skip" if "opacity" in more else "all"
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "x": [step for step, _ in kept],
        "y": [float(f"{value:.6g}") for _, value in kept],
        "line": look,
        "marker": {"size": 6},
        "hoverinfo": hover,
        **more,
    }


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Exponential moving average over about a fiftieth of the curve, corrected for its start (as Adam's)."""
    keep = 1 - 1 / max(1.0, len(points) / 50)
    average, smoothed = 0.0, []
    for n, (step, value) in enumerate(points, start=1):
        average = keep * average + (1 - keep) * value
        smoothed.append((step, average / (1 - keep**n)))
    return smoothed


def timed(runs: Sequence[Series]) -> list[tuple[int, int, Series, Row]]:
    """(number of the run, number of the row, run, row) of every row with samples."""
    return [
        (i, j, run, row)
        for i, run in enumerate(runs)
        for j, row in enumerate(run.rows)
        if row.about.latency_samples_ms
    ]


def colour_of(runs: Sequence[Series], run: int, part: int) -> str:
    """A colour a run; with a single run, a colour a variant or curve."""
    return COLOURS[(run if len(runs) > 1 else part) % len(COLOURS)]


def name_of(runs: Sequence[Series], run: Series, row: Row) -> str:
    return f"{run.label}: {row.name}" if len(runs) > 1 else row.name


def few_ticks() -> dict[str, Any]:
    """1, 2, 5, 10 ... on a logarithmic axis: plotly's own crowd on a phone."""
    values = [a * 10.0**e for e in range(-3, 5) for a in (1, 2, 5)]
    return {"tickvals": values, "ticktext": [f"{v:g}" for v in values]}


def _finite(line: dict[str, Any], key: str) -> bool:
    value = line.get(key)
    return isinstance(value, int | float) and math.isfinite(value)
