"""The report's plots of latency: its distribution, its tail, and every query at the moment it began."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.measure import LatencySummary, Turn
from scripts.report_figures import (
    MAX_POINTS,
    Figure,
    Series,
    colour_of,
    few_ticks,
    legend,
    name_of,
    timed,
)

_BINS, _MAX_BINS = 90, 500
_SLIVERS = 400
"""Of a variant's time, of which the fastest and the slowest query are drawn."""


def histogram(runs: Sequence[Series]) -> Figure | None:
    """Share of the queries in each bin of latency, to the slowest of all, and a tick for each query beyond
    its variant's p99, which would be too few for a bin to show; None without samples."""
    found = timed(runs)
    if not found:
        return None
    edges = _edges([row.latency for _, _, _, row in found])
    traces: list[dict[str, Any]] = []
    lines = []
    for i, j, run, row in found:
        samples = np.asarray(row.about.latency_samples_ms)
        counts, _ = np.histogram(samples, edges)
        colour, name = colour_of(runs, i, j), name_of(runs, run, row)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "legendgroup": name,
                "x": edges.round(5).tolist(),
                "y": [*(100 * counts / len(samples)).round(3).tolist(), 0],
                "line": {"shape": "hv", "color": colour, "width": 1.5},
                "fill": "tozeroy",
                "fillcolor": colour + "33",
                "hovertemplate": "from %{x:.3f} ms: %{y:.1f} % of queries",
            }
        )
        slow = np.sort(samples[samples > row.latency.p99_ms])[-MAX_POINTS:]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "legendgroup": name,
                "showlegend": False,
                "x": slow.round(4).tolist(),
                "y": [0] * len(slow),
                "marker": {"symbol": "line-ns-open", "color": colour, "size": 10},
                "hovertemplate": "one query of %{x:.3f} ms",
            }
        )
        lines.append(
            {
                "type": "line",
                "x0": row.latency.p50_ms,
                "x1": row.latency.p50_ms,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": colour, "width": 1.5, "dash": "dot"},
            }
        )
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "latency, ms (log); dotted: p50"}, "type": "log", **few_ticks()},
            "yaxis": {"title": {"text": "share of queries, %"}, "rangemode": "tozero"},
            "shapes": lines,
            "showlegend": len(found) > 1,
            **legend(len(found)),
        },
    }


def _edges(found: Sequence[LatencySummary]) -> NDArray[np.float64]:
    """Of bins as fine as if the axis ended at the bulk, and more of them where outliers lie far out."""
    low, most = min(one.min_ms for one in found), max(one.max_ms for one in found)
    bulk = max(one.p99_ms for one in found)
    low, most = max(0.97 * low, 1e-4), 1.03 * max(most, 1.05 * low)
    fine = math.log(max(1.05 * bulk / low, 1.05)) / _BINS
    return np.geomspace(low, most, min(_MAX_BINS, math.ceil(math.log(most / low) / fine)) + 1)


def tail(runs: Sequence[Series]) -> Figure | None:
    """For each latency the share of queries that took longer, both axes logarithmic; None without samples."""
    found = timed(runs)
    if not found:
        return None
    traces: list[dict[str, Any]] = []
    for i, j, run, row in found:
        ordered = np.sort(np.asarray(row.about.latency_samples_ms))
        count = len(ordered)
        # Log-spaced ranks from the slow end: every one of the slowest is kept, the bulk is thinned.
        ranks = np.unique(np.geomspace(1, count, min(count, MAX_POINTS // 2)).astype(int))
        colour, name = colour_of(runs, i, j), name_of(runs, run, row)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "legendgroup": name,
                "x": ordered[count - ranks].round(4).tolist(),
                "y": (100 * ranks / count).tolist(),
                "line": {"shape": "hv", "color": colour, "width": 2},
                "hovertemplate": "%{y:.3g} % of queries take %{x:.3f} ms or more",
            }
        )
        percentiles = [
            ("p50", 50, row.latency.p50_ms),
            ("p90", 10, row.latency.p90_ms),
            ("p99", 1, row.latency.p99_ms),
        ]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "legendgroup": name,
                "showlegend": False,
                "x": [ms for _, _, ms in percentiles],
                "y": [above for _, above, _ in percentiles],
                "customdata": [label for label, _, _ in percentiles],
                "marker": {"color": colour, "size": 9},
                "hovertemplate": "%{customdata}: %{x:.3f} ms",
            }
        )
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "latency, ms (log)"}, "type": "log", **few_ticks()},
            "yaxis": {
                "title": {"text": "queries at least as slow"},
                "type": "log",
                "tickvals": [100, 50, 10, 1, 0.1, 0.01],
                "ticktext": ["all", "p50", "p90", "p99", "p99.9", "p99.99"],
            },
            **legend(len(found)),
        },
    }


def timeline(runs: Sequence[Series]) -> Figure | None:
    """Latency against the time since the measuring began; None where no turns were recorded."""
    traces: list[dict[str, Any]] = []
    for i, j, run, row in timed(runs):
        if not row.about.turns:
            continue
        samples = np.asarray(row.about.latency_samples_ms)
        seconds = start_times(row.about.turns, samples)
        kept = extremes(samples, 2 * _SLIVERS)
        name = name_of(runs, run, row)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": seconds[kept].round(4).tolist(),
                "y": samples[kept].round(4).tolist(),
                "marker": {"color": colour_of(runs, i, j), "size": 4, "opacity": 0.7},
                "hovertemplate": "%{y:.3f} ms, begun at %{x:.2f} s",
            }
        )
    if not traces:
        return None
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "seconds since the measuring began"}},
            "yaxis": {"title": {"text": "latency, ms (log)"}, "type": "log", **few_ticks()},
            "showlegend": len(traces) > 1,
            "legend": {**legend(len(traces)).get("legend", {}), "itemsizing": "constant"},
        },
    }


def start_times(turns: Sequence[Turn], samples_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """When each query began, s: those of a turn follow each other at once."""
    found, first = [], 0
    for turn in turns:
        own = samples_ms[first : first + turn.count]
        found.append(turn.start_s + (np.cumsum(own) - own) / 1e3)
        first += turn.count
    return np.concatenate(found)


def extremes(samples: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Indexes of at most `most` samples, in order: the least and the largest of each of equal pieces."""
    if len(samples) <= most:
        return np.arange(len(samples))
    pieces = np.array_split(np.arange(len(samples)), most // 2)
    ends = [(piece[samples[piece].argmin()], piece[samples[piece].argmax()]) for piece in pieces]
    return np.unique(ends)
