"""The report's section about a chain of compression: what each stage left."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from scripts.report_figures import COLOURS, Figure, level
from scripts.report_html import plot_cards, points_lost, table, tr
from scripts.report_run import Run, Stage


def figures(run: Run, number: int) -> dict[str, Figure | None]:
    """The plots of run number `number`, by the names that `section` gives them."""
    if len(run.chain) < 2:
        return {f"stages-{number}": None, f"left-{number}": None}
    return {
        f"stages-{number}": _accuracy(run.chain, run.max_drop),
        f"left-{number}": _what_is_left(run.chain),
    }


def _accuracy(stages: list[Stage], max_drop: float | None) -> Figure:
    top1 = [100 * one.top1 for one in stages]
    gate = [] if max_drop is None else [level(top1[0] + stages[0].drop - max_drop, COLOURS[6], "dash")]
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "top-1",
                "x": [one.name for one in stages],
                "y": top1,
                "line": {"color": COLOURS[0], "width": 2},
                "marker": {"size": 9},
                "cliponaxis": False,
                "hovertemplate": "%{x}: %{y:.2f} %<extra></extra>",
            }
        ],
        "layout": {
            "xaxis": {"type": "category"},
            "yaxis": {"title": {"text": "top-1, %"}},
            "shapes": gate,
        },
    }


def _what_is_left(stages: list[Stage]) -> Figure:
    first = stages[0]
    shares: list[tuple[str, list[float | None]]] = [
        ("size", [one.onnx_bytes / first.onnx_bytes for one in stages]),
        ("MACs", [one.macs / first.macs for one in stages]),
        ("latency", [1 / one.speedup if one.speedup else None for one in stages]),
    ]
    return {
        "data": [
            {
                "type": "bar",
                "name": name,
                "x": [one.name for one in stages],
                "y": values,
                "marker": {"color": COLOURS[i]},
                "hovertemplate": f"%{{x}}: {name} %{{y:.1%}} of the original's<extra></extra>",
            }
            for i, (name, values) in enumerate(shares)
            if any(values)
        ],
        "layout": {
            "barmode": "group",
            "xaxis": {"type": "category"},
            "yaxis": {
                "title": {"text": "share of the original's"},
                "tickformat": ".0%",
                "rangemode": "tozero",
            },
        },
    }


def section(run: Run, whose: str, drawn: Mapping[str, Figure | None], number: int) -> str:
    """A table of the stages and two plots. `whose`: after the heading."""
    head = ["stage", "parameters", "MACs", "size<br>MiB", "top-1", "points", "p50<br>ms", "speed-up"]
    lines = [
        tr(
            [
                escape(one.name),
                f"{one.parameters / 1e6:.3f} M",
                f"{one.macs / 1e6:.1f} M",
                f"{one.onnx_bytes / 2**20:.2f}",
                f"{one.top1:.2%}",
                points_lost(one.drop, run.max_drop) if place else "",
                f"{one.latency_ms:.3f}" if one.latency_ms else "-",
                f"{one.speedup:.2f}x" if one.speedup else "-",
            ]
        )
        for place, one in enumerate(run.chain)
    ]
    hint = (
        f"Stage after stage, on {run.chain[-1].num_images:,} images. Points and speed-up are against the "
        "first line; each latency was measured in turns with it."
    )
    gate = "" if run.max_drop is None else f"Dashed: the bundle's gate, {run.max_drop:g} points below."
    panels = [
        (f"stages-{number}", "Top-1 after each stage", gate),
        (f"left-{number}", "What each stage leaves", "Shares of the original network's in FP32."),
    ]
    return (
        f'<section><h2>Compression{escape(whose)}</h2><p class="hint">{hint}</p>'
        + f"{table(head, lines)}</section>"
        + plot_cards(drawn, panels, "grid")
    )
