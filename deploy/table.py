"""Measurements as a plain-text table, with what a reader must not overlook under it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deploy.measure import LatencySummary
from deploy.results import Measurement

_NOISY_CV = 0.25
# What a ResNet gains at batch 1 on a CPU with VNNI, and more.
_EXPECTED_GAIN = 2.5


@dataclass(frozen=True)
class Row:
    """Latency and throughput of one variant side by side.

    name: the variant's, with the backend behind it where the measurements are of several, the batch where
    they are of several, and what the query is where it is not the usual one.
    throughput: at the same batch, or the only one there is. speedup: p50 of fp32 over this one's, both of the
    same machine, backend, threads, batch and kind of query; else None.
    """

    name: str
    about: Measurement
    latency: LatencySummary
    latency_batch: int
    throughput: Measurement | None
    speedup: float | None


def rows(measurements: Sequence[Measurement]) -> list[Row]:
    """One row a variant, backend, batch and kind of query in the order given; its last measurement."""
    timed = {(m.variant, m.backend, m.inside, m.batch): m for m in measurements if m.kind == "latency"}
    many: dict[tuple[str, str], dict[int, Measurement]] = {}
    for m in measurements:
        if m.kind == "throughput":
            many.setdefault((m.variant, m.backend), {})[m.batch] = m
    several = len({backend for _, backend, _, _ in timed}) > 1
    batches = {(variant, backend): 0 for variant, backend, _, _ in timed}
    for variant, backend, inside, _ in timed:
        batches[variant, backend] += inside == "host"
    found = []
    for m in timed.values():
        if m.latency is None:
            continue
        key = m.variant, m.backend
        name = f"{m.variant} ({m.backend})" if several else m.variant
        found.append(
            Row(
                name=name + (f", batch {m.batch}" if batches[key] > 1 else "") + _WORDS[m.inside],
                about=m,
                latency=m.latency,
                latency_batch=m.batch,
                throughput=_beside(m, many.get(key, {}), batches[key]),
                speedup=_speedup(m, list(timed.values())),
            )
        )
    return found


_WORDS = {"host": "", "in place": ", no copy in", "image": ", from files"}


def _beside(m: Measurement, many: Mapping[int, Measurement], num_batches: int) -> Measurement | None:
    if m.inside != "host":
        return None
    only = next(iter(many.values())) if len(many) == num_batches == 1 else None
    return many.get(m.batch, only)


def _speedup(m: Measurement, timed: Sequence[Measurement]) -> float | None:
    place = _place(m)
    for other in timed:
        if other.precision == "fp32" and _place(other) == place and other.latency and m.latency:
            return other.latency.p50_ms / m.latency.p50_ms
    return None


def _place(m: Measurement) -> tuple[object, ...]:
    return m.backend, m.batch, m.inside, m.threads, m.machine.get("device"), m.machine.get("cpu")


def format_table(measurements: Sequence[Measurement]) -> str:
    """Aligned columns, a line a variant, then the notes of :func:`notes`."""
    found = rows(measurements)
    if not found:
        return "no measurements"
    one = _batch(r.latency_batch for r in found)
    many = _batch(r.throughput.batch for r in found if r.throughput)
    tensors = any(r.about.accuracy.snr_db for r in found)
    head = [
        "variant", "precision", "top-1", "agrees with fp32", *(["SNR dB"] if tensors else []), "MiB",
        f"p50 ms{one}", "p99 ms", f"{unit(found)}{many}", "peak MiB", "speed-up",
    ]  # fmt: skip
    cells = [head] + [
        [
            r.name,
            r.about.precision,
            _number(r.about.accuracy.top1, ".2%"),
            _number(r.about.accuracy.agreement_with_fp32, ".2%"),
            *([_number(worst_db(r.about), ".1f")] if tensors else []),
            f"{r.about.file_bytes / 2**20:.2f}",
            f"{r.latency.p50_ms:.3f}",
            f"{r.latency.p99_ms:.3f}",
            _number(r.throughput.throughput_images_per_s if r.throughput else None, ".0f"),
            _number(r.about.peak_memory_mib, ".0f"),
            _number(r.speedup, ".2f", "x"),
        ]
        for r in found
    ]
    return "\n".join([*aligned(cells, "<<" + ">" * (len(head) - 2)), *notes(found)])


def _batch(batches: Iterable[int]) -> str:
    """Said in the column's head where all are of one."""
    found = set(batches)
    return f" (batch {found.pop()})" if len(found) == 1 else ""


def aligned(cells: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Lines of a table, the first row as its head, ruled off; a `<` or `>` of `sides` for each column."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(sides))]
    lines = [
        "  ".join(f"{c:{side}{w}}" for c, side, w in zip(line, sides, widths, strict=True)) for line in cells
    ]
    lines.insert(1, "-" * len(lines[0]))
    return [line.rstrip() for line in lines]


def worst_db(m: Measurement) -> float | None:
    """Signal-to-noise ratio of the output that is farthest from FP32's, dB; of FP32 itself none."""
    return min(m.accuracy.snr_db.values()) if m.accuracy.snr_db and m.precision != "fp32" else None


def unit(found: Sequence[Row]) -> str:
    """What is counted a second."""
    return "samples/s" if any(r.about.accuracy.snr_db for r in found) else "images/s"


def notes(found: Sequence[Row]) -> list[str]:
    """An INT8 that is slower than FP32, with the likely cause, a machine that was not quiet, and what the
    device did meanwhile."""
    lines = []
    for r in found:
        slow = r.about.precision.startswith("int") and r.speedup is not None and r.speedup < 1
        if slow and r.about.inside == "host":
            lines.append(f"WARNING: {r.name} is SLOWER than fp32 ({r.speedup:.2f}x): {_cause(r.about)}")
    gains = [r.speedup for r in found if r.about.precision.startswith("int") and r.speedup is not None]
    if gains and 1 <= max(gains) < _EXPECTED_GAIN and found[0].about.machine.get("int8_dot_product") is False:
        lines.append(
            "note: this CPU has no INT8 dot product (VNNI, dotprod), so INT8 gains less here than "
            "where there is one."
        )
    for r in found:
        if r.about.accuracy.snr_db and len(r.about.accuracy.snr_db) > 1 and r.about.precision != "fp32":
            each = ", ".join(f"{name} {db:.1f}" for name, db in r.about.accuracy.snr_db.items())
            lines.append(f"SNR of {r.name} by output, dB: {each}")
    if noisy := {r.name: r.latency.cv for r in found if r.latency.cv > _NOISY_CV}:
        least, most = f"{min(noisy.values()):.0%}", f"{max(noisy.values()):.0%}"
        which = ", ".join(noisy) if len(noisy) < 4 else f"{len(noisy)} rows"
        lines.append(
            f"note: {which}: latency varies by {least if least == most else f'{least} to {most}'} "
            "of its mean; other work on this machine or changing clocks. Measure again on a quiet one before "
            "you trust the tail."
        )
    warnings = {text: None for r in found for m in (r.about, r.throughput) if m for text in _warnings(m)}
    return [*lines, *(f"WARNING: {text}" for text in warnings)]


def _warnings(m: Measurement) -> Sequence[str]:
    return m.states.warnings if m.states else ()


def _cause(m: Measurement) -> str:
    if m.made_for == "tensorrt" and m.backend == "onnxruntime":
        return (
            "the file was made for tensorrt. Its S8 Q/DQ form keeps convolutions in floating point in "
            "onnxruntime; the variant made for onnxruntime (U8) is the one to compare here."
        )
    if m.machine.get("int8_dot_product") is False:
        return "this CPU has no INT8 dot product (VNNI, dotprod), so INT8 gains little in computing."
    return "the network is probably too small, so that quantising and dequantising cost more than they save."


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else format(value, form) + unit
