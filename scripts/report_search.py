"""The report's section about a search: every trial, and the front among them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from optimize.trials import Tried, front, unbeaten
from scripts.report_figures import BEHIND, COLOURS, Figure, front_line, level
from scripts.report_html import plot_cards, points_lost, table, tr
from scripts.report_run import Run

_LARGEST = 34  # px across, of the point with the largest file


def figures(run: Run, number: int) -> dict[str, Figure | None]:
    """The plot of run number `number`, by the name that `section` gives it."""
    return {f"search-{number}": _scatter(run.search, run.max_drop)} if run.search else {}


def _scatter(tried: list[Tried], max_drop: float | None) -> Figure:
    best = front(tried)
    edge = [best[i] for i in unbeaten([(one.latency, -one.top1) for one in best])]
    largest = max(one.size for one in tried)
    traces = front_line([(one.latency, 100 * one.top1) for one in edge], COLOURS[-1])
    for colour, precision in enumerate(dict.fromkeys(one.point.precision for one in tried)):
        mine = [one for one in tried if one.point.precision == precision]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": precision,
                "x": [one.latency for one in mine],
                "y": [100 * one.top1 for one in mine],
                "cliponaxis": False,
                "marker": {
                    "color": COLOURS[colour % len(COLOURS)],
                    "size": [one.size for one in mine],
                    "sizemode": "area",
                    "sizeref": 2 * largest / _LARGEST**2,
                    "sizemin": 5,
                    "opacity": [0.95 if one in best else BEHIND for one in mine],
                    "line": {"width": 0},
                },
                "text": [_hover(one) for one in mine],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    original = 100 * tried[0].top1 + tried[0].drop
    gate = [] if max_drop is None else [level(original - max_drop, COLOURS[6], "dash")]
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "title": {"text": "latency, share of the original's"},
                "rangemode": "tozero",
                "tickformat": ".0%",
            },
            "yaxis": {"title": {"text": "top-1, %"}},
            "showlegend": True,
            "legend": {"itemsizing": "constant"},
            "shapes": gate,
        },
    }


def _hover(one: Tried) -> str:
    lines = [
        f"<b>keep {one.point.keep:g}, energy {one.point.energy:g}, {escape(one.point.precision)}</b>",
        f"top-1 {one.top1:.2%}, {points_lost(one.drop, None)} points",
        f"latency {one.latency:.2f}, size {one.size:.3f}, MACs {one.macs:.2f} of the original's",
        f"{one.parameters / 1e6:.3f} M parameters",
    ]
    return "<br>".join(lines).replace("%{", "% {")


def section(run: Run, whose: str, drawn: Mapping[str, Figure | None], number: int) -> str:
    """The scatter and a table of all trials, the front first. `whose`: after the heading."""
    best = front(run.search)
    behind = sorted((one for one in run.search if one not in best), key=lambda one: one.latency)
    head = ["keep", "energy", "precision", "top-1", "points", "latency", "size", "MACs", "parameters"]
    parts = [
        ("On the front", "", best),
        ("Behind it", "behind", behind),
    ]
    lines = []
    for words, look, trials in parts:
        if trials:
            lines.append(f'<tr class="part"><td colspan="{len(head)}">{words}</td></tr>')
        lines += [tr(_cells(one, run.max_drop), look) for one in trials]
    hint = (
        f"{len(run.search)} trials. On the front: no other is better in one of top-1, latency and size and "
        "as good in the rest. Latency, size and MACs are shares of the original network's in FP32, points "
        "are against its top-1."
    )
    gate = "" if run.max_drop is None else f" Dashed: the gate, {run.max_drop:g} points below the original."
    about = "One point a trial, its area that of the file; full: on the front, whose edge is the line." + gate
    panel = (f"search-{number}", f"Search{escape(whose)}", about)
    return (
        plot_cards(drawn, [panel], "")
        + f'<section><h2>Trials{escape(whose)}</h2><p class="hint">{hint}</p>{table(head, lines)}</section>'
    )


def _cells(one: Tried, max_drop: float | None) -> list[str]:
    return [
        f"{one.point.keep:g}",
        f"{one.point.energy:g}",
        escape(one.point.precision),
        f"{one.top1:.2%}",
        points_lost(one.drop, max_drop),
        f"{one.latency:.2f}",
        f"{one.size:.3f}",
        f"{one.macs:.2f}",
        f"{one.parameters / 1e6:.3f} M",
    ]
