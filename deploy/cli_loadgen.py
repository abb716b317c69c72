"""`python -m deploy bench BUNDLE --scenario ...`: the options, and what is printed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.accuracy import images_for
from deploy.backends import made_for
from deploy.bundle import Bundle
from deploy.errors import LabError
from deploy.loadgen import DEFAULT_LATENCY_MS, DEFAULT_SECONDS, SCENARIOS, run_loadgen
from deploy.results import Measurement, append_measurements
from deploy.table import aligned


def add_scenario(parser: argparse.ArgumentParser) -> None:
    """Those that only count with `--scenario`."""
    group = parser.add_argument_group(
        "MLPerf's LoadGen", "its arrivals and its verdict, with our model; no official MLPerf result"
    )
    group.add_argument("--scenario", help=f"one of: {', '.join(SCENARIOS)}")
    group.add_argument(
        "--accuracy", action="store_true", help="then every sample once, and top-1 from LoadGen's own log"
    )
    group.add_argument("--target-qps", type=float, metavar="N", help="Server: queries a second that arrive")
    group.add_argument(
        "--target-latency-ms", type=float, metavar="MS",
        help=f"Server: what 99 %% of them must keep (default: {DEFAULT_LATENCY_MS:g})",
    )  # fmt: skip
    group.add_argument(
        "--logs", type=Path, default=Path("loadgen"), metavar="FOLDER",
        help="where LoadGen's own files go, in a folder a variant and scenario (default: loadgen)",
    )  # fmt: skip


def check_options(options: argparse.Namespace) -> None:
    """Raises LabError for options that only the other kind of benchmark takes."""
    only = {
        True: ("no_copies", "with_preprocessing", "energy"),
        False: ("accuracy", "target_qps", "target_latency_ms"),
    }
    with_scenario = options.scenario is not None
    for name in only[with_scenario]:
        if getattr(options, name):
            flag = "--" + name.replace("_", "-")
            raise LabError(f"{flag}: not {'with' if with_scenario else 'without'} --scenario; leave it out")
    if with_scenario and options.batch and len(options.batch) > 1:
        raise LabError(f"batch {options.batch}: give one with --scenario, the most samples of one inference")


def bench_scenario(bundle: Bundle, options: argparse.Namespace) -> int:
    """Each variant in turn. Exit code 0 also where LoadGen says INVALID; 130 where it was cancelled."""
    found = []
    for name in options.variant or made_for(bundle, options.backend):
        logs = options.logs / f"{name}-{options.scenario}"
        try:
            m = run_loadgen(
                bundle,
                name,
                options.scenario,
                backend=options.backend,
                threads=options.threads,
                in_flight=options.in_flight,
                batch=options.batch[0] if options.batch else None,
                seconds=DEFAULT_SECONDS if options.seconds is None else options.seconds,
                warmup_s=options.warmup,
                target_qps=options.target_qps,
                target_latency_ms=options.target_latency_ms,
                accuracy=options.accuracy,
                images=images_for(bundle, options.images) if options.images else (),
                tensors=options.inputs,
                logs=logs,
            )
        except KeyboardInterrupt:
            print(f"cancelled: LoadGen's files so far lie in {logs}", file=sys.stderr)
            return 130
        found.append(m)
        if options.out:
            append_measurements(options.out, [m])
    print(format_loadgen(found))
    return 0


def format_loadgen(measurements: list[Measurement]) -> str:
    """A line a variant, why a test is not valid, and where LoadGen's files are."""
    head = [
        "variant",
        "top-1",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "p99.9 ms",
        "samples/s",
        "queries",
        "LoadGen says",
    ]
    cells, notes = [head], []
    for m in measurements:
        result = m.loadgen
        assert result is not None
        cells.append(
            [
                m.variant,
                "-" if m.accuracy.top1 is None else f"{m.accuracy.top1:.2%}",
                *(f"{result.percentiles_ms[p]:.3f}" for p in ("50.00", "90.00", "99.00", "99.90")),
                "-" if result.samples_per_s is None else f"{result.samples_per_s:.1f}",
                str(result.num_queries),
                "VALID" if result.valid else "INVALID",
            ]
        )
        notes += [f"{m.variant} is INVALID: {reason}" for reason in result.reasons]
        notes += [f"WARNING: {text}" for text in (m.states.warnings if m.states else ())]
        notes.append(f"{m.variant}: LoadGen's files: {result.logs}")
    first = measurements[0].loadgen
    assert first is not None
    about = (
        f"{first.scenario} of MLPerf's LoadGen {first.version}, {first.samples_per_query} samples a query, "
        "with our model: no official MLPerf result"
    )
    return "\n".join([*aligned(cells, "<" + ">" * (len(head) - 2) + "<"), *notes, about])
