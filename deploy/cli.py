"""What the commands of `python -m deploy` have in common."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.archive import BUNDLE, is_archive, open_archive
from deploy.backends import BACKENDS, BEST_FIRST, best_backend
from deploy.errors import LabError
from deploy.signature import require_signature
from deploy.unpack import unpacked

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


_BEST = "best"


def add_bundle(parser: argparse.ArgumentParser, own: Path | None, *, optional: bool = False) -> None:
    """The bundle to work on, as `options.bundle`. own: of the .pyz that runs; then it is not asked for.

    optional: the command has something to say without one, too, and then it is None.
    """
    if own is None:
        parser.add_argument(
            "bundle", nargs="?" if optional else None, type=Path, metavar="BUNDLE",
            help="the bundle's folder, or a .pyz of it",
        )  # fmt: skip
    else:
        parser.set_defaults(bundle=own)
    parser.add_argument(
        "--require-signature", type=Path, metavar="PUBLIC.pem",
        help="refuse a .pyz that was not signed with the private key to this one (Ed25519)",
    )  # fmt: skip


def open_bundle_option(options: argparse.Namespace) -> None:
    """Put a folder into the place of a .pyz: `options.bundle` is one from here on, `options.archive` the .pyz
    or None. Raises LabError."""
    bundle: Path | None = getattr(options, "bundle", None)
    key: Path | None = getattr(options, "require_signature", None)
    given = bundle is not None and is_archive(bundle)
    if given:
        options.archive = bundle
    if key is not None and options.archive is None:
        raise LabError(f"{bundle}: only a .pyz can be signed: give that, or leave --require-signature out")
    if options.archive is None or not (given or key):
        return
    archive = open_archive(options.archive)
    if key is not None:
        require_signature(archive, key)
    if given:
        options.bundle = unpacked(archive, BUNDLE) / "bundle"


def as_called(text: str, called: str | None) -> str:
    """Commands in an error or an example as one would type them to a .pyz, which brings its own bundle.

    called: `python3 NAME.pyz`; None leaves all as it is.
    """
    if called is None:
        return text
    return re.sub(
        r"python3? -m deploy\b((?: [a-z]\w*)?)(?: BUNDLE| runs/\S+/bundle(?=\s|$))?", rf"{called}\1", text
    )


def add_runner(parser: argparse.ArgumentParser) -> None:
    """`options.backend`, which `settle_backend` makes one of BACKENDS, and `options.threads`."""
    parser.add_argument(
        "--backend", default=_BEST,
        help=f"one of: {', '.join(BACKENDS)} (default: the first of {', '.join(BEST_FIRST)} that runs here)",
    )  # fmt: skip
    add_threads(parser)


def settle_backend(options: argparse.Namespace) -> None:
    """Only once a command is to run, because TensorRT has to be imported to know."""
    if getattr(options, "backend", None) == _BEST:
        options.backend = best_backend()


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
