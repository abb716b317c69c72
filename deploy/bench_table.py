"""What `bench` prints under its table: the whole distribution of latency, queries in flight, energy."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.results import Measurement
from deploy.table import aligned, rows


def format_latency(measurements: Sequence[Measurement]) -> str:
    """Every figure of the latencies, ms; nothing is clipped."""
    head = ["latency, ms", "min", "p50", "p90", "p99", "p99.9", "max", "mean", "cv", "queries"]
    cells = [head] + [
        [
            row.name,
            *(
                _ms(x)
                for x in (row.latency.min_ms, row.latency.p50_ms, row.latency.p90_ms, row.latency.p99_ms)
            ),
            _ms(row.latency.p99_9_ms),
            *(_ms(x) for x in (row.latency.max_ms, row.latency.mean_ms)),
            f"{row.latency.cv:.1%}",
            str(row.about.rule.count),
        ]
        for row in rows(measurements)
    ]
    return "\n".join(aligned(cells, "<" + ">" * (len(head) - 1)))


def format_in_flight(measurements: Sequence[Measurement]) -> str:
    """How the throughputs were had."""
    found = [m for m in measurements if m.kind == "throughput"]
    if all(m.in_flight == 1 for m in found):
        return "throughput: one query after the other; more in flight were not faster here, or not tried"
    each = ", ".join(f"{m.variant} at batch {m.batch}: {m.in_flight}" for m in found)
    return f"throughput: queries in flight, which share the threads: {each}"


def format_device_memory(measurements: Sequence[Measurement]) -> str:
    """What lies in a GPU's own memory, with as many queries in flight as in throughput; empty where there is
    none."""
    found = [m for m in measurements if m.device_memory_mib is not None and m.kind == "throughput"]
    each = ", ".join(f"{m.variant} at batch {m.batch}: {m.device_memory_mib:.0f} MiB" for m in found)
    return f"the GPU's own memory: {each}" if found else ""


def format_energy(measurements: Sequence[Measurement]) -> str:
    """Joules of an image at full load; empty where nothing measured them."""
    found = [m for m in measurements if m.energy is not None]
    if not found:
        return ""
    head = ["energy at full load", "batch", "W", "mJ/image", "above idle", "samples"]
    cells = [head]
    about = ""
    for m in found:
        energy = m.energy
        assert energy is not None
        cells.append(
            [
                m.variant,
                str(m.batch),
                f"{energy.watts[energy.rail]:.2f}",
                f"{1e3 * energy.joules_per_image:.3g}",
                f"{1e3 * energy.joules_per_image_above_idle:.3g}",
                str(energy.num_samples),
            ]
        )
        about = (
            f"rail {energy.rail} ({energy.source}, {energy.sample_hertz:.3g} samples/s), idle before "
            f"{energy.idle_watts:.2f} W"
        )
    return "\n".join([*aligned(cells, "<" + ">" * (len(head) - 1)), about])


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
