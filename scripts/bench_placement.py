"""`python -m scripts.bench_placement`: how long it takes from a network in torch to the placement's verdict.

Random weights, whose values no part of this depends on. Calibration, which is between export and linter, is
shown too and is not part of the sum.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from configs.load import load
from configs.schema import TrainConfig
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from optimize.calibrate import calibrate
from optimize.export import export_onnx
from optimize.placement import Task, check, report
from optimize.qdq import emit
from optimize.qdq_lint import lint
from optimize.rtx_build import COMPUTE_CAPABILITIES
from train.model import build_model

NUM_CLASSES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_placement", description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=224, help="of the image, pixels (default: 224)")
    options = parser.parse_args()
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        seconds[part] = time.monotonic() - start

    names = tuple(map(str, range(NUM_CLASSES)))
    spec = InputSpec(options.size, options.size, mean=(0.5,) * 3, std=(0.2,) * 3, class_names=names)
    network = build_model(load("train", TrainConfig, [f"model={options.model}"]).model, NUM_CLASSES)
    images = np.random.default_rng(0).normal(size=(2, 3, options.size, options.size)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        with timed("export"):
            export_onnx(network, spec, fp32)
        with timed("calibration of 2 images"):
            quantised = emit(onnx.load(fp32), calibrate(fp32, [images], "max", 99.99), "s8")
            onnx.save(quantised, int8)
        with timed("lint"):
            lint(quantised)
        with timed(f"placement for {', '.join(COMPUTE_CAPABILITIES)}"):
            checked = check(Task(options.model, int8, True, frozenset()), COMPUTE_CAPABILITIES)
    print(report(checked))
    for part, took in seconds.items():
        print(f"{took:6.1f} s  {part}")
    total = sum(took for part, took in seconds.items() if not part.startswith("calibration"))
    print(f"{total:6.1f} s  export + lint + placement")


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
