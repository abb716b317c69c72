"""`python -m deploy COMMAND`: measure or check a bundle here, build engines, tell what devices can do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.accuracy import images_for, tensors_for
from deploy.backends import BACKENDS
from deploy.bench import DEFAULT_WARMUP_S, bench
from deploy.bundle import Bundle, open_bundle
from deploy.cli_build import add_build, add_engine
from deploy.cli_targets import add_estimate, add_targets
from deploy.errors import LabError
from deploy.layers import DEFAULT_SECONDS, time_layers
from deploy.table import format_table
from deploy.verify import verify


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 when a check of `verify` fails; 2 for a user's mistake, told on stderr."""
    options = _parser().parse_args(argv)
    try:
        return int(options.command(options))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


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


def _verify(options: argparse.Namespace) -> int:
    report = verify(options.bundle, options.images, options.backend, options.threads, options.inputs)
    print(report)
    return 0 if report.ok else 1


def _layers(options: argparse.Namespace) -> int:
    table = time_layers(options.folder, options.threads, options.seconds)
    table.write(options.out)
    print(f"{len(table.latency_ms)} layers on {table.threads} threads: {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy",
        description="Measure or check a bundle on this machine, build its engines, tell what devices can do, "
        "or estimate how fast a bundle will be there.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser(
        "bench",
        help="accuracy, latency, throughput and memory of each variant",
        description="Accuracy, latency, throughput and memory of each variant of a bundle.",
        epilog="example: python -m deploy bench runs/digits/bundle --images photos/test --out results.jsonl",
    )
    _common(one)
    one.add_argument(
        "--variant", nargs="+", metavar="NAME", help="which variants (default: those made for the backend)"
    )
    one.add_argument(
        "--batch", nargs="+", type=int, metavar="N",
        help="latency at the smallest, throughput at the largest (default: 1 32, or the model's own where it "
        "takes only one)",
    )  # fmt: skip
    one.add_argument(
        "--seconds", type=float, default=3.0, help="timed, for each figure of each variant (default: 3)"
    )
    one.add_argument(
        "--warmup", type=float, default=DEFAULT_WARMUP_S, metavar="SECONDS",
        help=f"untimed, before each turn (default: {DEFAULT_WARMUP_S})",
    )  # fmt: skip
    one.add_argument("--out", type=Path, metavar="FILE", help="add the measurements to this JSON lines file")
    one.set_defaults(command=_bench)

    other = commands.add_parser(
        "verify",
        help="compare each variant's outputs here with those that came with the bundle",
        description="Check every file's SHA-256 and each variant's outputs on the bundle's own samples. "
        "Exit code 1 when a check fails, 2 when the bundle cannot be opened.",
        epilog="example: python -m deploy verify runs/digits/bundle --images photos/test",
    )
    _common(other)
    other.set_defaults(command=_verify)

    add_build(commands)
    add_engine(commands)

    layers = commands.add_parser(
        "layers",
        help="the time of each layer of a folder, for pruning by this machine's latency",
        description="Time every ONNX file of a folder by itself: the table that prune.latency_table takes.",
        epilog="example: python -m deploy layers layers --out latency.json",
    )
    layers.add_argument(
        "folder", type=Path, metavar="FOLDER", help="as `python -m optimize.layer_latency` leaves it"
    )
    layers.add_argument("--out", type=Path, required=True, metavar="FILE", help="the table, as JSON")
    _threads(layers)
    layers.add_argument(
        "--seconds", type=float, default=DEFAULT_SECONDS,
        help=f"timed, for each layer (default: {DEFAULT_SECONDS})",
    )  # fmt: skip
    layers.set_defaults(command=_layers)

    add_targets(commands)
    add_estimate(commands)

    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--backend", default=BACKENDS[0], help=f"one of: {', '.join(BACKENDS)}")
    _threads(parser)
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="test images, one sub-folder a class: adds the accuracy"
    )

    parser.add_argument(
        "--inputs", type=Path, metavar="FILE.npz",
        help="for a model of tensors: samples, an array for each input, and maybe labels",
    )  # fmt: skip


def _threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, help="CPU threads for a query (default: all usable cores)")


if __name__ == "__main__":
    sys.exit(main())
