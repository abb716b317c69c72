"""The report's plot of accuracy against latency, with the front: what no other variant beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from deploy.table import Row
from optimize.trials import unbeaten
from scripts.report_figures import (
    BEHIND,
    Figure,
    Series,
    colour_of,
    few_ticks,
    front_line,
    legend,
    level,
    name_of,
)

_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "star", "cross", "hexagon", "x")


def trade_off(runs: Sequence[Series]) -> Figure | None:
    """Top-1 against p50, one point a variant; None where no accuracy was measured.

    Of each run, the front (Pareto) is a line, and what is behind it is faint. Only the front and the
    original in FP32 have their names beside them: those of 20 points could not be read.
    """
    lines: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    for i, run in enumerate(runs):
        known = [(j, row) for j, row in enumerate(run.rows) if row.about.accuracy.top1 is not None]
        places = [(row.latency.p50_ms, _percent(row)) for _, row in known]
        best = unbeaten([(ms, -top1) for ms, top1 in places])
        fp32 = next((n for n, (_, row) in enumerate(known) if row.about.precision == "fp32"), None)
        lines += front_line([places[n] for n in best], colour_of(runs, i, 0))
        for n, (j, row) in enumerate(known):
            points.append(_point(runs, i, j, row, n in best, n in best or n == fp32))
        if fp32 is not None:
            references.append(level(places[fp32][1], colour_of(runs, i, known[fp32][0]), "dot"))
    if not points:
        return None
    _place_names(points)
    values = [point["y"][0] for point in points]
    # Padded, and never less than a point high: noise of a hundredth must not look like a cliff.
    pad = max(0.5, (max(values) - min(values)) * 0.25)
    return {
        "data": [*lines, *points],
        "layout": {
            "xaxis": {
                "title": {"text": "p50 latency, ms (log); whisker to p99"},
                "type": "log",
                **few_ticks(),
            },
            "yaxis": {
                "title": {"text": "top-1, %"},
                "range": [min(values) - pad, min(100.0, max(values)) + pad],
            },
            "showlegend": len(runs) > 1,
            **legend(len(points)),
            "shapes": references,
            "annotations": [_corner("↖ faster, more accurate", 0.99, 0.01)],
        },
    }


def _point(runs: Sequence[Series], i: int, j: int, row: Row, ahead: bool, named: bool) -> dict[str, Any]:
    run, colour = runs[i], colour_of(runs, i, j)
    symbol = _SYMBOLS[j % len(_SYMBOLS)] if len(runs) > 1 else "circle"
    return {
        "type": "scatter",
        "mode": "markers+text" if named else "markers",
        "name": name_of(runs, run, row),
        "x": [row.latency.p50_ms],
        "y": [_percent(row)],
        "text": [row.name],
        "cliponaxis": False,
        "marker": {
            "color": colour,
            "symbol": symbol + ("-open" if row.about.variant in run.left_out else ""),
            "size": 12 + 3 * math.log2(1 + row.about.file_bytes / 2**20),
            "opacity": 0.95 if ahead else BEHIND,
            "line": {"color": colour, "width": 2},
        },
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [row.latency.p99_ms - row.latency.p50_ms],
            "arrayminus": [0],
            "thickness": 1.5,
            "color": colour if ahead else colour + "59",
            "visible": named,
        },
        "hovertemplate": _hover(run, row),
    }


def _place_names(points: Sequence[dict[str, Any]]) -> None:
    """Above and to the left, where nothing is better; at the left side, where they would be cut, not."""
    times = [math.log(point["x"][0]) for point in points]
    width = max(times) - min(times)
    for point, time in zip(points, times, strict=True):
        point["textposition"] = "top right" if time - min(times) <= width / 5 else "top left"


def _percent(row: Row) -> float:
    return 100 * (row.about.accuracy.top1 or 0)


def _hover(run: Series, row: Row) -> str:
    m = row.about
    many = row.throughput
    lines = [
        f"<b>{row.name}</b> ({run.label}){', not in the bundle' if m.variant in run.left_out else ''}",
        f"top-1 {_number(m.accuracy.top1, '.2%')} on {m.accuracy.num_images} images",
        f"agrees with fp32: {_number(m.accuracy.agreement_with_fp32, '.2%')}",
        f"p50 {row.latency.p50_ms:.3f} ms, p90 {row.latency.p90_ms:.3f}, p99 {row.latency.p99_ms:.3f}",
        f"speed-up {_number(row.speedup, '.2f')}",
        f"images/s {_number(many.throughput_images_per_s if many else None, '.0f')}",
        f"{m.file_bytes / 2**20:.2f} MiB, peak memory {_number(m.peak_memory_mib, '.0f')} MiB",
        f"{m.backend} {m.backend_version}, {m.threads} threads, batch {m.batch}, {m.rule.count} queries",
    ]
    return "<br>".join(lines).replace("%{", "% {") + "<extra></extra>"


def _number(value: float | None, form: str) -> str:
    return "not measured" if value is None else format(value, form)


def _corner(text: str, x: float, y: float) -> dict[str, Any]:
    return {
        "text": text,
        "xref": "paper",
        "yref": "paper",
        "x": x,
        "y": y,
        "showarrow": False,
        "opacity": 0.6,
    }
