"""`python -m deploy verify BUNDLE`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.archive import check_all, open_archive
from deploy.cli import add_bundle, add_runner, add_samples
from deploy.verify import verify

if TYPE_CHECKING:
    from deploy.cli import Commands


def add_verify(commands: Commands, own: Path | None) -> None:
    """The parser of `verify`."""
    parser = commands.add_parser(
        "verify",
        help="compare each variant's outputs here with those that came with the bundle",
        description="Check every file's SHA-256 and each variant's outputs on the bundle's own samples. "
        "Exit code 1 when a check fails, 2 when the bundle cannot be opened.",
        epilog="example: python -m deploy verify runs/digits/bundle --images photos/test",
    )
    add_bundle(parser, own)
    add_runner(parser)
    add_samples(parser)
    parser.set_defaults(command=_verify)


def _verify(options: argparse.Namespace) -> int:
    if options.archive is not None:
        print(_whole(options.archive, options.require_signature))
    report = verify(options.bundle, options.images, options.backend, options.threads, options.inputs)
    print(report)
    return 0 if report.ok else 1


def _whole(archive: Path, key: Path | None) -> str:
    count = check_all(open_archive(archive))
    who = "its signature was not asked for" if key is None else f"signed by the owner of {key}"
    return f"ok    {archive.name}: {count} files have their SHA-256; {who}"
