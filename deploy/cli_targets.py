"""`python -m deploy targets`: what devices can do; `estimate BUNDLE`: how fast a bundle will be there."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.bundle import open_bundle
from deploy.cli import add_bundle, as_called
from deploy.estimate import estimate
from deploy.estimate_table import format_estimates
from deploy.target import load_target, target_names
from deploy.target_table import format_target, format_targets

if TYPE_CHECKING:
    from deploy.cli import Commands


def add_targets(commands: Commands, own: Path | None) -> None:
    """The parser of `targets`."""
    parser = commands.add_parser(
        "targets",
        help="the devices that there are figures of, or all figures of one",
        description="The devices of configs/target and their peaks; with a name, its power modes, JetPack "
        "versions and the source of each figure.",
        epilog="example: python -m deploy targets orin_nano_8gb:MAXN_SUPER",
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME[:MODE]", help="one target, in one of its power modes"
    )
    parser.set_defaults(command=_targets)


def add_estimate(commands: Commands, own: Path | None) -> None:
    """The parser of `estimate`."""
    parser = commands.add_parser(
        "estimate",
        help="latency and energy on a device that is not at hand",
        description="Latency, throughput and energy of each variant on a target, as ranges, layer by layer.",
        epilog="example: python -m deploy estimate runs/digits/bundle --target orin_nano_8gb --variant int8",
    )
    add_bundle(parser, own)
    parser.add_argument(
        "--target", required=True, metavar="NAME", help="as `python -m deploy targets` lists them"
    )
    parser.add_argument("--mode", metavar="NAME", help="power mode (default: the target's own)")
    parser.add_argument(
        "--variant", nargs="+", metavar="NAME", help="which variants (default: those that the target runs)"
    )
    parser.add_argument(
        "--batch", nargs="+", type=int, default=[1, 32], metavar="N", help="images a query (default: 1 32)"
    )
    parser.add_argument(
        "--ceilings", type=Path, metavar="FILE",
        help="for --target cpu: what `python -m scripts.roofline --json FILE` measured",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="as JSON, with every layer")
    parser.set_defaults(command=_estimate)


def _targets(options: argparse.Namespace) -> int:
    if options.name:
        print(format_target(load_target(options.name)))
    else:
        table = format_targets([load_target(name) for name in target_names()])
        print(as_called(table, options.called))
    return 0


def _estimate(options: argparse.Namespace) -> int:
    estimates = estimate(
        open_bundle(options.bundle),
        load_target(options.target),
        mode=options.mode,
        variants=options.variant,
        batches=options.batch,
        ceilings=options.ceilings,
    )
    if options.json:
        print(json.dumps([asdict(one) for one in estimates], indent=1))
    else:
        print(format_estimates(estimates))
    return 0
