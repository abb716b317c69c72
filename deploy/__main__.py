"""`python -m deploy COMMAND`: measure or check a bundle here, build engines, tell what devices can do."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from deploy.cli import as_called, open_bundle_option, settle_backend
from deploy.errors import LabError

_COMMANDS = {
    "doctor": "deploy.cli_doctor.add_doctor",
    "bench": "deploy.cli_bench.add_bench",
    "verify": "deploy.cli_verify.add_verify",
    "classify": "deploy.cli_classify.add_classify",
    "demo": "deploy.cli_demo.add_demo",
    "build": "deploy.cli_build.add_build",
    "engine": "deploy.cli_build.add_engine",
    "layers": "deploy.cli_layers.add_layers",
    "targets": "deploy.cli_targets.add_targets",
    "estimate": "deploy.cli_targets.add_estimate",
}
"""Functions by name: only what is asked for is imported, for that takes a device longer than a query does."""
_PIPE_CLOSED = 141  # as a shell reports it


def main(argv: Sequence[str] | None = None, own: Path | None = None, archive: Path | None = None) -> int:
    """own: the bundle of the .pyz that is running, which the commands then work on; archive: that file.

    Exit code 0; 1 when a check of `verify` fails, or `doctor` finds that nothing can run; 2 for a user's
    mistake, told on stderr.
    """
    called = None if archive is None else f"python3 {archive.name}"
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = _parser(arguments[:1], own, archive, called).parse_args(arguments)
    try:
        open_bundle_option(options)
        settle_backend(options)
        status = int(options.command(options))
        sys.stdout.flush()
        return status
    except LabError as error:
        print(f"error: {as_called(str(error), called)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED


def _parser(
    first: Sequence[str], own: Path | None, archive: Path | None, called: str | None
) -> argparse.ArgumentParser:
    """first: the command, if there is an argument: the others are left out then."""
    parser = argparse.ArgumentParser(
        prog=called or "python -m deploy",
        description="Look at this machine, measure, check or show a bundle on it, build its engines, tell "
        "what devices can do, or estimate how fast a bundle will be there.",
    )
    parser.set_defaults(archive=archive, called=called)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function in _COMMANDS.items():
        if name in first or not _COMMANDS.keys() & first:
            module, _, add = function.rpartition(".")
            getattr(import_module(module), add)(commands, own)
    for command in commands.choices.values():
        command.epilog = as_called(command.epilog or "", called)
        command.description = as_called(command.description or "", called)
        for action in command._actions:
            action.help = as_called(action.help or "", called)
    return parser


if __name__ == "__main__":
    sys.exit(main())
