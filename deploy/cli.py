"""What the commands of `python -m deploy` have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.backends import BACKENDS

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_bundle(parser: argparse.ArgumentParser, own: Path | None, *, optional: bool = False) -> None:
    """The bundle to work on, as `options.bundle`. own: of the .pyz that runs; then it is not asked for.

    optional: the command has something to say without one, too, and then it is None.
    """
    if own is None:
        nargs = "?" if optional else None
        parser.add_argument("bundle", nargs=nargs, type=Path, metavar="BUNDLE", help="the bundle's folder")
    else:
        parser.set_defaults(bundle=own)


def add_runner(parser: argparse.ArgumentParser) -> None:
    """`options.backend` and `options.threads`."""
    parser.add_argument("--backend", default=BACKENDS[0], help=f"one of: {', '.join(BACKENDS)}")
    add_threads(parser)


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, help="CPU threads for a query (default: all usable cores)")


def add_samples(parser: argparse.ArgumentParser) -> None:
    """`options.images` and `options.inputs`: what the accuracy is measured on."""
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="test images, one sub-folder a class: adds the accuracy"
    )
    parser.add_argument(
        "--inputs", type=Path, metavar="FILE.npz",
        help="for a model of tensors: samples, an array for each input, and maybe labels",
    )  # fmt: skip
