"""`python -m deploy bench BUNDLE`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.accuracy import images_for, tensors_for
from deploy.bench import DEFAULT_WARMUP_S, bench
from deploy.bundle import Bundle, open_bundle
from deploy.cli import add_bundle, add_runner, add_samples
from deploy.table import format_table

if TYPE_CHECKING:
    from deploy.cli import Commands


def add_bench(commands: Commands, own: Path | None) -> None:
    """The parser of `bench`."""
    parser = commands.add_parser(
        "bench",
        help="accuracy, latency, throughput and memory of each variant",
        description="Accuracy, latency, throughput and memory of each variant of a bundle.",
        epilog="example: python -m deploy bench runs/digits/bundle --images photos/test --out results.jsonl",
    )
    add_bundle(parser, own)
    add_runner(parser)
    add_samples(parser)
    parser.add_argument(
        "--variant", nargs="+", metavar="NAME", help="which variants (default: those made for the backend)"
    )
    parser.add_argument(
        "--batch", nargs="+", type=int, metavar="N",
        help="latency at the smallest, throughput at the largest (default: 1 32, or the model's own where it "
        "takes only one)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="timed, for each figure of each variant (default: 3)"
    )
    parser.add_argument(
        "--warmup", type=float, default=DEFAULT_WARMUP_S, metavar="SECONDS",
        help=f"untimed, before each turn (default: {DEFAULT_WARMUP_S})",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="add the measurements to this JSON lines file"
    )
    parser.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> int:
    bundle = open_bundle(options.bundle)
    measurements = bench(
        bundle,
        variants=options.variant,
        backend=options.backend,
        threads=options.threads,
        batches=options.batch or _usual_batches(bundle),
        seconds=options.seconds,
        warmup_s=options.warmup,
        images=images_for(bundle, options.images) if options.images else (),
        tensors=tensors_for(bundle, options.inputs) if options.inputs else None,
        out=options.out,
    )
    print(format_table(measurements))
    timed = {m.variant for m in measurements}
    for variant in bundle.variants:
        if variant.name not in timed:
            print(f"not timed: {variant.name}, made for {variant.backend}")
    return 0


def _usual_batches(bundle: Bundle) -> list[int]:
    fixed = bundle.inputs[0].shape[0]
    return [1, 32] if fixed is None else [fixed]
