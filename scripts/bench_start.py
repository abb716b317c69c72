"""`python -m scripts.bench_start`: from the start of `python3 NAME.pyz classify` to its first answer.

The time from starting the process until the line of its first finished query is read: of a ResNet-18 and a
ResNet-50 at 224 px with their INT8 forms in the file, of the variant that is run the first time (unpacked,
and Python compiles what it imports) and each time after. Below it what the time goes into, each from a
process of its own that does that much and no more; the rest is the bundle's SHA-256, the image, the session
and the query. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from deploy.bundle import write_bundle
from optimize.archive import write_archive
from scripts.bench_lines import libraries_line
from scripts.bench_runners import bundle_of

GOAL_S = 1.0
NETWORKS = ("resnet18", "resnet50")
NUMPY = "import numpy"
ORT = "import numpy, onnxruntime"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_start", description=__doc__)
    parser.add_argument(
        "--pyz", type=Path, nargs="+", metavar="FILE", help="these in place of the two networks"
    )
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(libraries_line("onnxruntime", "numpy"))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for archive in options.pyz or [archive_of(network, work / network) for network in NETWORKS]:
            print("\n".join(lines(archive, options.rounds, work / "cache")))
    return 0


def lines(archive: Path, rounds: int, cache: Path) -> list[str]:
    first, warm, parts = [], [], []
    for _ in range(rounds):
        shutil.rmtree(cache, ignore_errors=True)
        first.append(seconds(["-u", str(archive), "classify"], cache))
        warm.append(seconds(["-u", str(archive), "classify"], cache))
        python, with_numpy, with_ort = (
            seconds(["-c", f"{code}; print()"], cache) for code in ("0", NUMPY, ORT)
        )
        parsed = seconds([str(archive), "classify", "--help"], cache)
        parts.append((python, with_numpy - python, parsed - with_numpy, with_ort - with_numpy))
    python, numpy, deploy, ort = (median(column) for column in zip(*parts, strict=True))
    rest = median(warm) - python - numpy - deploy - ort
    return [
        f"{archive.name}, {archive.stat().st_size / 2**20:.0f} MiB: first answer after {_spread(warm)}; "
        f"goal: under {GOAL_S:.1f} s",
        f"  the first time: {_spread(first)}",
        f"  Python {python:.3f}, numpy {numpy:.3f}, check and our code {deploy:.3f}, ONNX Runtime {ort:.3f}, "
        f"bundle, session and query {rest:.3f} s",
    ]


def seconds(arguments: Sequence[str], cache: Path) -> float:
    """Until the first line of output."""
    environment = {**os.environ, "EDGELAB_CACHE": str(cache)}
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        spent = time.perf_counter() - start
        process.stdout.read()
    if process.returncode or not line:
        raise SystemExit(f"{' '.join(arguments)} ended with code {process.returncode}")
    return spent


def archive_of(network: str, folder: Path) -> Path:
    """FP32 and the CPU's INT8 with random weights, and a picture of 500 x 375."""
    models = bundle_of(network, folder)
    assert models.input is not None
    picture = folder / "picture.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (375, 500, 3), np.uint8)).save(picture)
    bundle = write_bundle(
        folder / "bundle",
        name=network,
        input=models.input,
        variants=models.variants,
        models={variant.name: folder / variant.file for variant in models.variants},
        samples=[(picture, 0)],
        expected={v.name: np.zeros((1, models.input.num_classes), np.float32) for v in models.variants},
        versions={},
        commands=[],
    )
    return write_archive(bundle.root, folder / f"{network}.pyz")


def _spread(found: Sequence[float]) -> str:
    return f"{median(found):.2f} s ({min(found):.2f} to {max(found):.2f})"


if __name__ == "__main__":
    sys.exit(main())
