"""Plots of the classes: precision and recall, the confusion matrix, how many images beside how well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from scripts.report_figures import COLOURS, Figure, legend

# Faint at 0, so that it reads on white and on near-black.
_SCALE = [[0, "rgba(59,130,246,0.05)"], [0.5, "rgba(59,130,246,0.55)"], [1, "#3b82f6"]]
_MOST_NAMES = 30  # on an axis
_LONGEST = 16  # letters of a name on an axis


def pr_curves(curves: Sequence[dict[str, Any]]) -> Figure | None:
    """One line a class; None where no class has a curve."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": _short(curve["name"]),
            "x": curve["recall"],
            "y": curve["precision"],
            "line": {
                "color": COLOURS[i % len(COLOURS)],
                "width": 2,
                "dash": ("solid", "dash", "dot")[i // len(COLOURS) % 3],
            },
            "hovertemplate": "recall %{x:.1%}, precision %{y:.1%}",
        }
        for i, curve in enumerate(curves)
        if curve["recall"]
    ]
    if not traces:
        return None
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "recall"}, "range": [0, 1.01], "tickformat": ".0%"},
            "yaxis": {"title": {"text": "precision"}, "range": [0, 1.03], "tickformat": ".0%"},
            **legend(len(traces)),
        },
    }


def confusion(counts: Sequence[Sequence[int]] | None, names: Sequence[str]) -> Figure | None:
    """Shares of each label's images, the counts on hover; None where there is no matrix."""
    if counts is None:
        return None
    shares = [[round(n / max(1, sum(row)), 4) for n in row] for row in counts]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": shares,
        "x": list(names),
        "y": list(names),
        "customdata": [list(row) for row in counts],
        "zmin": 0,
        "zmax": 1,
        "colorscale": _SCALE,
        "showscale": False,
        "xgap": 1 if len(names) <= 40 else 0,
        "ygap": 1 if len(names) <= 40 else 0,
        "hovertemplate": "label %{y}<br>predicted %{x}<br>%{customdata} images, %{z:.1%} of the label's"
        "<extra></extra>",
    }
    if len(names) <= 12:
        trace |= {"text": trace["customdata"], "texttemplate": "%{text}", "textfont": {"size": 11}}
    return {
        "data": [trace],
        "layout": {
            "xaxis": {"title": {"text": "predicted"}, "showgrid": False, **_names(names)},
            "yaxis": {
                "title": {"text": "label"},
                "showgrid": False,
                "autorange": "reversed",
                **_names(names),
            },
        },
    }


def frequencies(rows: Sequence[dict[str, Any]]) -> Figure:
    """Below the images of each class, above its F1; the commonest class first."""
    ordered = sorted(rows, key=lambda row: -row["train"])
    names = [row["name"] for row in ordered]
    most, least = ordered[0]["train"], ordered[-1]["train"]
    log = most > 20 * least  # the rare ones would be lines without height
    # From half an image: a logarithmic bar needs a foot, and one of a single image a height.
    scale = {"type": "log", "range": [-0.3, math.log10(most) + 0.1], "dtick": 1} if log else {}
    counts = [
        {
            "type": "bar",
            "name": words,
            "x": names,
            "y": [row[key] for row in ordered],
            "marker": {"color": colour},
            "hovertemplate": f"%{{x}}: %{{y:,}} images ({words})<extra></extra>",
        }
        for key, words, colour in (("train", "training", COLOURS[0]), ("val", "validation", COLOURS[7]))
    ]
    f1 = {
        "type": "scatter",
        "mode": "markers",
        "name": "F1",
        "x": names,
        "y": [row["f1"] for row in ordered],
        "yaxis": "y2",
        "marker": {"color": COLOURS[1], "size": 10},
        "hovertemplate": "%{x}: F1 %{y:.1%}<extra></extra>",
    }
    return {
        "data": [*counts, f1],
        "layout": {
            "barmode": "group",
            "xaxis": _names(names),
            "yaxis": {"title": {"text": "images (log)" if log else "images"}, "domain": [0, 0.56], **scale},
            "yaxis2": {
                "title": {"text": "F1"}, "domain": [0.64, 1], "range": [-0.06, 1.06], "tickformat": ".0%",
                "tickvals": [0, 0.5, 1],
            },
        },
    }  # fmt: skip


def _names(names: Sequence[str]) -> dict[str, Any]:
    """Classes along an axis: names, even those that look like numbers; too many to read are on hover only."""
    axis = {"type": "category", "tickvals": list(names), "ticktext": [_short(name) for name in names]}
    return axis if len(names) <= _MOST_NAMES else {**axis, "showticklabels": False, "ticks": ""}


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
