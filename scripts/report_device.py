"""The report's section on the device: what it did meanwhile, what an image costs, what LoadGen says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from deploy.results import Measurement, States
from scripts import report_html as html
from scripts.report_run import Run


def section(run: Run, whose: str) -> str:
    """Empty where nothing of it was measured."""
    parts = [_energy(run.measurements), _loadgen(run.measurements), _states(run.measurements)]
    if not any(parts):
        return ""
    return f"<section><h2>Device{escape(whose)}</h2>{''.join(parts)}</section>"


def _energy(measurements: Sequence[Measurement]) -> str:
    lines = []
    about = ""
    for m in measurements:
        if (energy := m.energy) is None:
            continue
        cells = (
            f"{energy.watts[energy.rail]:.2f}",
            f"{1e3 * energy.joules_per_image:.3g}",
            f"{1e3 * energy.joules_per_image_above_idle:.3g}",
            f"{m.throughput_images_per_s or 0:,.0f}",
        )
        lines.append(html.tr([f"{escape(m.variant)}<small>batch {m.batch}</small>", *cells]))
        about = (
            f"At full load, rail {energy.rail} ({energy.source}, {energy.sample_hertz:.3g} samples/s); idle "
            f"before: {energy.idle_watts:.2f} W."
        )
    head = ["variant", "W", "mJ/image", "above idle<br>mJ/image", "images/s"]
    return f'<p class="hint">{escape(about)}</p>{html.table(head, lines)}' if lines else ""


def _loadgen(measurements: Sequence[Measurement]) -> str:
    lines, notes = [], []
    for m in measurements:
        if (result := m.loadgen) is None:
            continue
        rate = "-" if result.samples_per_s is None else f"{result.samples_per_s:,.1f}"
        top1 = "-" if m.accuracy.top1 is None else f"{m.accuracy.top1:.2%}"
        times = [f"{result.percentiles_ms[p]:.3f}" for p in ("50.00", "90.00", "99.00", "99.90")]
        verdict = "VALID" if result.valid else '<span class="bad">INVALID</span>'
        lines.append(html.tr([escape(m.variant), result.scenario, top1, *times, rate, verdict]))
        notes += [html.note(f"{m.variant}, {result.scenario}, is INVALID: {why}") for why in result.reasons]
    head = [
        "variant",
        "scenario",
        "top-1",
        "p50<br>ms",
        "p90<br>ms",
        "p99<br>ms",
        "p99.9<br>ms",
        "samples/s",
        "",
    ]
    hint = '<p class="hint">By MLPerf\'s LoadGen with this model: no official MLPerf result.</p>'
    return f"{hint}{html.table(head, lines)}{''.join(notes)}" if lines else ""


def _states(measurements: Sequence[Measurement]) -> str:
    """Clocks, temperatures and power mode, from the first look to the last."""
    found = [m.states for m in measurements if m.states is not None]
    if not found:
        return ""
    lines = [html.tr([escape(cell) for cell in line]) for line in _lines(found)]
    return html.table(["", "before", "meanwhile", "after"], lines) if lines else ""


def _lines(found: Sequence[States]) -> list[list[str]]:
    before, after = found[0].before, found[-1].after
    during = [state for states in found for state in states.during]
    lines = []
    if modes := list(dict.fromkeys(s.power_mode for s in (before, *during, after) if s.power_mode)):
        lines.append(["power mode", before.power_mode or "-", ", ".join(modes), after.power_mode or "-"])
    kinds = (
        ("MHz", ".0f", before.mhz, [state.mhz for state in during], after.mhz),
        ("°C", ".1f", before.celsius, [state.celsius for state in during], after.celsius),
    )
    for unit, form, first, meanwhile, last in kinds:
        for name in first:
            seen = [values[name] for values in meanwhile if name in values]
            lines.append(
                [f"{name}, {unit}", _at(first, name, form), _span(seen, form), _at(last, name, form)]
            )
    return lines


def _at(values: Mapping[str, float], name: str, form: str) -> str:
    return format(values[name], form) if name in values else "-"


def _span(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    least, most = format(min(values), form), format(max(values), form)
    return least if least == most else f"{least} to {most}"
