"""`python -m deploy COMMAND`: measure or check a bundle here, build engines, tell what devices can do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.cli_bench import add_bench
from deploy.cli_build import add_build, add_engine
from deploy.cli_demo import add_demo
from deploy.cli_layers import add_layers
from deploy.cli_targets import add_estimate, add_targets
from deploy.cli_verify import add_verify
from deploy.errors import LabError


def main(argv: Sequence[str] | None = None, own: Path | None = None) -> int:
    """own: the bundle of the .pyz that is running, which the commands then work on.

    Exit code 0; 1 when a check of `verify` fails; 2 for a user's mistake, told on stderr.
    """
    options = _parser(own).parse_args(argv)
    try:
        return int(options.command(options))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser(own: Path | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy",
        description="Measure or check a bundle on this machine, build its engines, tell what devices can do, "
        "or estimate how fast a bundle will be there.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_bench(commands, own)
    add_verify(commands, own)
    add_demo(commands, own)
    add_build(commands, own)
    add_engine(commands)
    add_layers(commands)
    add_targets(commands)
    add_estimate(commands, own)
    return parser


if __name__ == "__main__":
    sys.exit(main())
