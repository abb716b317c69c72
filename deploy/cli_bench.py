"""`python -m deploy bench BUNDLE`."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.accuracy import images_for, tensors_for
from deploy.backends import CPU_BACKENDS
from deploy.bench import DEFAULT_WARMUP_S, bench
from deploy.bench_inside import copies_note
from deploy.bench_table import format_device_memory, format_energy, format_in_flight, format_latency
from deploy.bundle import Bundle, open_bundle
from deploy.cli import add_bundle, add_runner, add_samples
from deploy.cli_loadgen import add_scenario, bench_scenario, check_options
from deploy.compare_table import compare_files
from deploy.errors import LabError
from deploy.loadgen import DEFAULT_SECONDS as LOADGEN_SECONDS
from deploy.power_meters import find_meter
from deploy.table import format_table

DEFAULT_SECONDS = 3.0

if TYPE_CHECKING:
    from deploy.cli import Commands
    from deploy.power import PowerMeter


def add_bench(commands: Commands, own: Path | None) -> None:
    """The parser of `bench`."""
    parser = commands.add_parser(
        "bench",
        help="accuracy, latency, throughput, memory and energy of each variant",
        description="Accuracy, latency, throughput, memory and energy of each variant of a bundle.",
        epilog="example: python -m deploy bench runs/digits/bundle --images photos/test --out results.jsonl",
    )
    add_bundle(parser, own, optional=True)
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A.jsonl", "B.jsonl"),
        help="measure nothing: say whether two results files differ by more than noise",
    )  # fmt: skip
    add_runner(parser)
    add_samples(parser)
    parser.add_argument(
        "--variant", nargs="+", metavar="NAME", help="which variants (default: those made for the backend)"
    )
    parser.add_argument(
        "--batch", nargs="+", type=int, metavar="N",
        help="latency and throughput at each (default: latency at 1 and throughput at 32, or both at the "
        "model's own where it takes only one)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"timed, for each figure of each variant (default: {DEFAULT_SECONDS:g}; "
        f"with --scenario {LOADGEN_SECONDS:g})",
    )
    parser.add_argument(
        "--warmup", type=float, default=DEFAULT_WARMUP_S, metavar="SECONDS",
        help=f"untimed, before each turn (default: {DEFAULT_WARMUP_S})",
    )  # fmt: skip
    parser.add_argument(
        "--in-flight", type=int, metavar="N",
        help="queries at a time in throughput (default: what is faster in a short trial, 1 or as many as the "
        "device is likely to need)",
    )  # fmt: skip
    parser.add_argument(
        "--no-copies", action="store_true",
        help="TensorRT: latency also of inputs that lie where the GPU reads them",
    )  # fmt: skip
    parser.add_argument(
        "--with-preprocessing", action="store_true", help="latency also from the sample files to the answer"
    )
    parser.add_argument(
        "--energy", action=argparse.BooleanOptionalAction,
        help="joules per image (default: where there is a power meter; --energy: an error where none is)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="add the measurements to this JSON lines file"
    )
    add_scenario(parser)
    parser.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> int:
    if options.compare:
        print(compare_files(*options.compare))
        return 0
    if options.bundle is None:
        raise LabError("no bundle: give its folder, or --compare A.jsonl B.jsonl")
    check_options(options)
    bundle = open_bundle(options.bundle)
    if options.scenario is not None:
        return bench_scenario(bundle, options)
    latency, throughput = (options.batch, options.batch) if options.batch else _usual_batches(bundle)
    try:
        with ExitStack() as stack:
            meter, no_meter = _meter(options, stack)
            measurements = bench(
                bundle,
                variants=options.variant,
                backend=options.backend,
                threads=options.threads,
                batches=latency,
                throughput_batches=throughput,
                seconds=DEFAULT_SECONDS if options.seconds is None else options.seconds,
                warmup_s=options.warmup,
                in_flight=options.in_flight,
                in_place=options.no_copies,
                with_preprocessing=options.with_preprocessing,
                images=images_for(bundle, options.images) if options.images else (),
                tensors=tensors_for(bundle, options.inputs) if options.inputs else None,
                meter=meter,
                out=options.out,
            )
    except KeyboardInterrupt:
        print("cancelled: nothing was written", file=sys.stderr)
        return 130
    print(format_table(measurements))
    print(f"\n{format_latency(measurements)}\n{format_in_flight(measurements)}")
    if memory := format_device_memory(measurements):
        print(memory)
    if options.no_copies and (why := copies_note(options.backend)):
        print(why)
    print(no_meter or f"\n{format_energy(measurements)}")
    timed = {m.variant for m in measurements}
    for variant in bundle.variants:
        if variant.name not in timed:
            print(f"not timed: {variant.name}, made for {variant.backend}")
    return 0


def _usual_batches(bundle: Bundle) -> tuple[list[int], list[int]]:
    """(of latency, of throughput)"""
    fixed = bundle.inputs[0].shape[0]
    return ([1], [32]) if fixed is None else ([fixed], [fixed])


def _meter(options: argparse.Namespace, stack: ExitStack) -> tuple[PowerMeter | None, str]:
    """(the meter of what computes, opened for as long as the stack is, and why there is none).

    Raises LabError where one was asked for.
    """
    if options.energy is False:
        return None, "energy: not measured, as asked"
    try:
        meter = stack.enter_context(find_meter(device="cpu" if options.backend in CPU_BACKENDS else "gpu"))
        meter.read()  # it may be there and not for this user
    except LabError as error:
        if options.energy:
            raise
        return None, f"energy: not measured: {str(error).removeprefix('power: ')}"
    return meter, ""
