"""The report's sections, as HTML. Whatever comes from a file is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from deploy.manifest import Bundle
from deploy.results import Measurement
from deploy.table import Row, notes, unit, worst_db
from scripts.report_figures import COLOURS, MANY, Figure
from scripts.report_run import SOURCES, Run


def headline(run: Run, label: str, index: int, count: int, lead: str) -> str:
    """The figures of one run; `lead` stands before those of the device."""
    fp32 = next((r for r in run.rows if r.about.precision == "fp32"), None)
    shipped = [r for r in run.rows if r.about.variant not in run.left_out]
    quantised = [r for r in shipped if r.about.precision.startswith("int")]
    best = min(quantised, key=lambda r: r.latency.p50_ms, default=fp32)
    parts = [lead]
    if best is not None:
        parts.append(f'<div class="figures">{"".join(_cards(fp32, best))}</div>')
    parts += [note(text) for text in notes(run.rows)]
    parts += [
        note(f"{run.path / name} is not there: {SOURCES[name]} are missing here.") for name in run.missing
    ]
    name = f'<div class="name">{_dot(index, count)}{escape(label)}</div>' if count > 1 else ""
    return f'<section class="run">{name}{"".join(parts)}</section>'


def _cards(fp32: Row | None, best: Row) -> list[str]:
    """Four figures of the fastest quantised variant, each beside FP32's."""
    accuracy = best.about.accuracy.top1
    change, before = "", "FP32 was not measured"
    if fp32 and fp32.about.accuracy.top1 is not None and accuracy is not None:
        points = 100 * (accuracy - fp32.about.accuracy.top1)
        tone = "bad" if points < -1 else "good" if points >= 0 else ""
        change = f' <span class="{tone}">{points:+.2f} points</span>'
        before = f"FP32 {fp32.about.accuracy.top1:.2%}"
    size = best.about.file_bytes / 2**20
    larger = fp32.about.file_bytes if fp32 else 0
    smaller = f"FP32 {larger / 2**20:.1f} MiB, {larger / best.about.file_bytes:.1f} times as large"
    slower = best.speedup is not None and best.speedup < 1
    name = escape(best.name)
    near = worst_db(best.about)
    first = card(
        f"Top-1, {name}",
        "-" if accuracy is None else f"{accuracy * 100:.2f}",
        "%",
        escape(before) + change,
    )
    if accuracy is None and near is not None:
        first = card(f"SNR, {name}", f"{near:.1f}", "dB", _agrees(best.about))
    return [
        first,
        card(f"Size, {name}", f"{size:.1f}", "MiB", escape(smaller if fp32 else "FP32 was not measured")),
        card(
            f"Latency p50, {name}",
            f"{best.latency.p50_ms:.2f}",
            "ms",
            f"FP32 {fp32.latency.p50_ms:.2f} ms" if fp32 else "FP32 was not measured",
        ),
        card(
            "Slow-down" if slower else "Speed-up over FP32",
            "-" if best.speedup is None else f"{best.speedup:.2f}",
            "x",
            f"batch {best.about.batch}, {best.about.threads} threads, {escape(best.about.backend)}",
            "bad" if slower else "good",
        ),
    ]


def _agrees(m: Measurement) -> str:
    share = m.accuracy.agreement_with_fp32
    of = "the output that is farthest from FP32's"
    return of if share is None else f"same class as FP32 on {share:.2%} of {m.accuracy.num_images}"


def card(label: str, value: str, unit: str, below: str, tone: str = "") -> str:
    return (
        f'<div class="figure"><div class="label">{label}</div><div class="value {tone}">{value}'
        f'<small>{unit}</small></div><div class="from">{below}</div></div>'
    )


def results(runs: Sequence[Run], labels: Sequence[str]) -> str:
    found = [(label, i, r) for i, (run, label) in enumerate(zip(runs, labels, strict=True)) for r in run.rows]
    if not found:
        return ""
    shipped = [r for _, i, r in found if r.about.variant not in runs[i].left_out]
    fastest = min((r.latency.p50_ms for r in shipped), default=None)
    most = max((r.about.accuracy.top1 or 0 for r in shipped), default=None)
    tensors = any(r.about.accuracy.snr_db for _, _, r in found)
    lines = []
    for label, i, r in found:
        many = r.throughput.throughput_images_per_s if r.throughput else None
        batch = f"<small>batch {r.throughput.batch}</small>" if r.throughput else ""
        name = _dot(i, len(runs)) + " " + escape(r.name)
        source = f"{label}, " if len(runs) > 1 else ""
        mark = runs[i].mark(r.about.variant)
        out = r.about.variant in runs[i].left_out
        cells = [
            f"{name}<small>{escape(source)}for {escape(r.about.made_for)}</small>"
            + (f'<small class="bad">{escape(mark)}</small>' if mark else ""),
            _cell(r.about.accuracy.top1, ".2%", best=None if out else most),
            _cell(r.about.accuracy.agreement_with_fp32, ".2%"),
            *([_cell(worst_db(r.about), ".1f")] if tensors else []),
            f"{r.about.file_bytes / 2**20:.2f}",
            _cell(r.latency.p50_ms, ".3f", best=None if out else fastest),
            f"{r.latency.p90_ms:.3f}",
            f"{r.latency.p99_ms:.3f}",
            f"{r.latency.cv:.1%}",
            _cell(many, ",.0f") + batch,
            _cell(r.about.peak_memory_mib, ".0f"),
            "-" if r.speedup is None else f"{r.speedup:.2f}x",
        ]
        lines.append(tr(cells))
    head = [
        "variant", "top-1", "agrees<br>with FP32", *(["SNR<br>dB"] if tensors else []), "size<br>MiB",
        "p50<br>ms", "p90<br>ms", "p99<br>ms", "cv", unit([r for _, _, r in found]), "peak<br>MiB",
        "speed-up",
    ]  # fmt: skip
    rule = found[0][2].about.rule
    batches = sorted({r.latency_batch for _, _, r in found})
    hint = (
        f"Latency: one synchronous query at a time, batch {', '.join(map(str, batches))}, "
        f"{rule.inside_the_clock}; no sample is clipped. Accuracy is of the very file and session timed."
    ) + (" SNR: of the output that is farthest from FP32's." if tensors else "")
    return f'<section><h2>Results</h2><p class="hint">{escape(hint)}</p>{table(head, lines)}</section>'


def latency_section(figures: Mapping[str, Figure | None]) -> str:
    panels = [
        (
            "trade-off",
            "Accuracy against latency",
            "One point a variant, its area growing with the file's size. The line is the front, which no "
            "other beats; behind it is faint, hollow is not in the bundle, dotted is FP32's accuracy.",
        ),
    ]
    pair = [
        ("histogram", "Latency distribution", "Every query; the ticks are those beyond their variant's p99."),
        ("tail", "The tail", "How rare a slow query is. Dots: p50, p90, p99; the line ends at the slowest."),
    ]
    missing = ""
    if figures["tail"] and not figures["trade-off"]:
        missing = note(
            "No accuracy was measured, so there is no plot of it: run the bench with --images, or with "
            "--inputs of an .npz file that has labels."
        )
    timed = figures["histogram"]
    layout = "rows" if timed and len(timed["layout"]["shapes"]) > MANY else "grid"
    time = [
        (
            "timeline",
            "Latency over time",
            "Each query where it began; of many the fastest and the slowest of each sliver of time. The "
            "variants take turns, so what comes over all of them is the machine.",
        ),
    ]
    plots = (
        plot_cards(figures, panels, ""),
        plot_cards(figures, pair, layout),
        plot_cards(figures, time, ""),
    )
    return missing + "".join(plots)


def training_section(figures: Mapping[str, Figure | None]) -> str:
    panels = [
        ("loss", "Loss", "Training (moving average over the faint values) and evaluation."),
        ("top1", "Accuracy", "On the evaluation images, after each epoch."),
        ("lr", "Learning rate", "As applied."),
        ("speed", "Training throughput", "All ranks together."),
        ("wait", "Waiting for data", "Share of the time that the step waited for its batch."),
        ("norm", "Gradient norm", "Before clipping."),
    ]
    return plot_cards(figures, panels, "grid")


def plot_cards(
    figures: Mapping[str, Figure | None], panels: Sequence[tuple[str, str, str]], layout: str
) -> str:
    """Plots with a heading and a hint each, (name of the figure, heading, hint), where there is a figure."""
    cards = [
        f'<div class="card"><h2>{title}</h2><p class="hint">{hint}</p>'
        f'<div class="plot" id="{name}"></div></div>'
        for name, title, hint in panels
        if figures[name]
    ]
    return f'<section class="{layout}">{"".join(cards)}</section>' if cards else ""


def table(head: Sequence[str], lines: Sequence[str]) -> str:
    """`head`: HTML of the columns' names; `lines`: rows of HTML."""
    names = "".join(f"<th>{text}</th>" for text in head)
    return f'<div class="card scroll"><table><tr>{names}</tr>{"".join(lines)}</table></div>'


def tr(cells: Sequence[str], look: str = "") -> str:
    """A row of HTML; `look`: its class."""
    kind = f' class="{look}"' if look else ""
    return f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def points_lost(drop: float, max_drop: float | None) -> str:
    """The change in points of top-1, marked where the gate, if it is known, does not allow it."""
    text = f"{round(-drop, 2) + 0.0:+.2f}"  # no -0.00
    failed = max_drop is not None and round(drop, 6) > max_drop  # rounded as the gate does
    return f'<span class="bad">GATE {text}</span>' if failed else text


def provenance(runs: Sequence[Run], labels: Sequence[str]) -> str:
    cards = []
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        parts = [f'<div class="run"><div class="name">{_dot(i, len(runs))}{escape(label)}</div></div>']
        if run.measurements:
            parts.append(_measured(run.measurements[-1]))
        if run.bundle:
            parts.append(_bundle(run.bundle))
        if run.config:
            text = escape(run.config)
            parts.append(f"<details><summary>Configuration</summary><pre>{text}</pre></details>")
        cards.append(f'<div class="card">{"".join(parts)}</div>')
    hint = "Enough to do it again, or to find out why it came out differently."
    return f'<section><h2>Provenance</h2><p class="hint">{hint}</p>{"<br>".join(cards)}</section>'


def _measured(m: Measurement) -> str:
    facts = {key: value for key, value in m.machine.items() if key != "versions"}
    rule = {
        "timed": f"{m.rule.duration_s:g} s in {m.rule.rounds} interleaved rounds, {m.rule.count} calls",
        "warm-up": f"{m.rule.warmup_s:g} s before each round",
        "percentiles": m.rule.percentile,
        "inside the clock": m.rule.inside_the_clock,
        "measured": m.created,
    }
    return f"<h3>Machine</h3>{_facts({**facts, **m.machine.get('versions', {})})}<h3>Rule</h3>{_facts(rule)}"


def _bundle(bundle: Bundle) -> str:
    inside = {
        **_input(bundle),
        "parameters": ", ".join(f"{v.name} {v.num_parameters:,}" for v in bundle.variants),
        "created": bundle.created,
        **bundle.versions,
    }
    commands = escape("\n".join(map(str, bundle.commands)))
    hashes = escape("\n".join(f"{digest}  {name}" for name, digest in bundle.files.items()))
    return (
        f"<h3>Bundle</h3>{_facts(inside)}<h3>Commands</h3><pre>{commands}</pre>"
        f"<details><summary>SHA-256 of {len(bundle.files)} files</summary><pre>{hashes}</pre></details>"
    )


def _input(bundle: Bundle) -> dict[str, str]:
    spec = bundle.input
    tensors = {
        "inputs": ", ".join(f"{one.name} {one}" for one in bundle.inputs),
        "outputs": ", ".join(f"{one.name} {one}" for one in bundle.outputs),
    }
    if spec is None:
        return tensors
    images = {
        "input": f"{spec.size} x {spec.size} px {spec.colour}, shorter side resized to {spec.resize} px, "
        f"{spec.interpolation}",
        "mean, std": f"{list(spec.mean)}, {list(spec.std)}",
    }
    return images | ({"classes": ", ".join(spec.class_names)} if spec.class_names else tensors)


def _facts(facts: dict[str, Any]) -> str:
    known = {key.replace("_", " "): value for key, value in facts.items() if value is not None}
    words = {True: "yes", False: "no"}
    lines = "".join(
        f"<tr><td>{escape(k)}</td><td>{escape(words[v] if isinstance(v, bool) else str(v))}</td></tr>"
        for k, v in known.items()
    )
    return f'<table class="facts">{lines}</table>'


def _cell(value: float | None, form: str, best: float | None = None) -> str:
    if value is None:
        return "-"
    text = format(value, form)
    return f'<span class="best">{text}</span>' if value == best else text


def _dot(index: int, count: int) -> str:
    return (
        f'<span class="dot" style="background:{COLOURS[index % len(COLOURS)]}"></span>' if count > 1 else ""
    )


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
