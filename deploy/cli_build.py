"""`python -m deploy build BUNDLE`: TensorRT engines of its variants; `engine FILE`: what an engine is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.backends import made_for
from deploy.bundle import open_bundle
from deploy.cli import add_bundle
from deploy.cuda import find_cuda
from deploy.engine import BuiltEngine, check_engine, find_target, ready_engine
from deploy.engine_build import DEFAULT_BATCH, BuildOptions
from deploy.engine_cache import FOLDER_VARIABLE
from deploy.errors import LabError
from deploy.trt_api import find_tensorrt

if TYPE_CHECKING:
    from deploy.cli import Commands

_CANCELLED = 130  # as a shell reports a program that Ctrl-C ended


def add_build(commands: Commands, own: Path | None) -> None:
    """The parser of `build`."""
    parser = commands.add_parser(
        "build",
        help="a TensorRT engine of each variant, kept for the benchmark",
        description="Build TensorRT engines of a bundle's variants for this machine's GPU, or take those "
        "that still fit, and say in which precision their layers are.",
        epilog="example: python -m deploy build runs/digits/bundle --variant int8",
    )
    add_bundle(parser, own)
    parser.add_argument(
        "--variant", nargs="+", metavar="NAME", help="which variants (default: those made for tensorrt)"
    )
    parser.add_argument(
        "--batch", nargs="+", type=int, metavar="N",
        help="one batch size, or the least, the most common and the largest "
        f"(default: {' '.join(map(str, DEFAULT_BATCH))}, or the file's own fixed batch)",
    )  # fmt: skip
    parser.add_argument(
        "--workspace-mib", type=int, metavar="N", help="for one kernel (default: by the memory that is free)"
    )
    parser.add_argument(
        "--no-tf32", action="store_true", help="multiply float32 in full precision on GPUs that have TF32"
    )
    parser.add_argument(
        "--compute-capability", nargs="+", default=[], metavar="X.Y",
        help="build for these GPUs, which need not be here (TensorRT-RTX only)",
    )  # fmt: skip
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER",
        help=f"for the engines of many bundles (default: what {FOLDER_VARIABLE} says, or BUNDLE.engines)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="build even where an engine fits")
    parser.set_defaults(command=_build)


def add_engine(commands: Commands, own: Path | None) -> None:
    """The parser of `engine`."""
    parser = commands.add_parser(
        "engine",
        help="what an engine was built from, and whether it runs here",
        description="Print the record of an engine file. Exit code 2 where it is of another device or "
        "another TensorRT, or is damaged.",
        epilog="example: python -m deploy engine runs/digits/bundle.engines/int8.orin.engine",
    )
    parser.add_argument("engine", type=Path, metavar="FILE", help="an .engine file of `build`")
    parser.set_defaults(command=_engine)


def _build(options: argparse.Namespace) -> int:
    bundle = open_bundle(options.bundle)
    chosen = BuildOptions(_batch(options.batch), options.workspace_mib, tf32=not options.no_tf32)
    names = options.variant or made_for(bundle, "tensorrt")
    for name in names:
        bundle.variant(name)
    target = find_target(find_tensorrt(), find_cuda(), tuple(options.compute_capability))
    print(f"{target.api} for {target}")
    try:
        for name in names:
            built = ready_engine(
                bundle, name, target, chosen, print, cache=options.cache, force=options.force
            )
            _tell(name, built)
    except KeyboardInterrupt:
        print("cancelled: no engine was written", file=sys.stderr)
        return _CANCELLED
    return 0


def _engine(options: argparse.Namespace) -> int:
    record = check_engine(options.engine, find_target(find_tensorrt(), find_cuda()))
    least, common, most = record.batch
    print(f"{record.variant}: {record.key.tensorrt} for {record.key.device}, built {record.created}")
    print(f"  batch {least} to {most}, most often {common}; ONNX SHA-256 {record.key.onnx_sha256[:12]}")
    print("\n".join(record.account()))
    return 0


def _batch(given: list[int] | None) -> tuple[int, int, int] | None:
    if given is None:
        return None
    if len(given) == 1:
        return given[0], given[0], given[0]
    if len(given) == 3:
        return given[0], given[1], given[2]
    raise LabError(f"batch {given}: give one size, or three: least, most common, largest")


def _tell(name: str, built: BuiltEngine) -> None:
    record = built.record
    how = f"built in {record.build_s:.1f} s" if built.built else "up to date"
    print(f"{name}: {how}, {record.engine_bytes / 2**20:.1f} MiB: {built.path}")
    print("\n".join(record.account()))
