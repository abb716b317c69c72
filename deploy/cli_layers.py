"""`python -m deploy layers FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.cli import add_threads
from deploy.layers import DEFAULT_SECONDS, time_layers

if TYPE_CHECKING:
    from deploy.cli import Commands


def add_layers(commands: Commands, own: Path | None) -> None:
    """The parser of `layers`."""
    parser = commands.add_parser(
        "layers",
        help="the time of each layer of a folder, for pruning by this machine's latency",
        description="Time every ONNX file of a folder by itself: the table that prune.latency_table takes.",
        epilog="example: python -m deploy layers layers --out latency.json",
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="as `python -m optimize.layer_latency` leaves it"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the table, as JSON")
    add_threads(parser)
    parser.add_argument(
        "--seconds", type=float, default=DEFAULT_SECONDS,
        help=f"timed, for each layer (default: {DEFAULT_SECONDS})",
    )  # fmt: skip
    parser.set_defaults(command=_layers)


def _layers(options: argparse.Namespace) -> int:
    table = time_layers(options.folder, options.threads, options.seconds)
    table.write(options.out)
    print(f"{len(table.latency_ms)} layers on {table.threads} threads: {options.out}")
    return 0
