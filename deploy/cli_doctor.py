"""`python -m deploy doctor [BUNDLE]`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.bundle import open_bundle
from deploy.cli import add_bundle
from deploy.doctor import examine

if TYPE_CHECKING:
    from deploy.cli import Commands


def add_doctor(commands: Commands, own: Path | None) -> None:
    """The parser of `doctor`."""
    parser = commands.add_parser(
        "doctor",
        help="what this machine is and has, what of a bundle can run here, and what to mend",
        description="Look at the module, JetPack, CUDA, TensorRT, Python, memory, power mode, clocks, "
        "temperature, throttling, DLA, cameras and power meters; with a bundle, at what of it can run here. "
        "Changes nothing and needs no rights. Exit code 0 when the bundle (without one: some backend) can "
        "run here, 1 when not, 2 when the bundle cannot be opened.",
        epilog="example: python -m deploy doctor runs/digits/bundle --json",
    )
    add_bundle(parser, own, optional=True)
    parser.add_argument("--json", action="store_true", help="as JSON, with every figure")
    parser.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    diagnosis = examine(open_bundle(options.bundle) if options.bundle else None)
    print(diagnosis.to_json() if options.json else diagnosis)
    return 0 if diagnosis.can_run else 1
