"""`python -m scripts.bench_quantize`: how long quantising a ResNet-50 takes and how much memory.

The network has random weights and gets drawn images at 224 px: neither changes the work. Each calibration
method has a process of its own, whose highest resident memory is that of the whole stage: images,
calibration, both files, the comparison of all their integers. Processor time stands beside the clock's, for
a busy machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import cast, get_args

import numpy as np
import onnx

from configs.quantize import CalibrationMethod
from deploy.input_spec import InputSpec
from scripts.bench_lines import libraries_line

SIZE = 224
BATCH = 32
MAX_SECONDS, MAX_GB, MAX_CHECKS_S = 90, 4, 30
_STATUS = Path("/proc/self/status")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_quantize", description=__doc__)
    parser.add_argument("--num-images", type=int, default=512)
    methods = get_args(CalibrationMethod)
    parser.add_argument("--methods", nargs="+", choices=methods, default=list(methods))
    parser.add_argument("--child", nargs=2, metavar=("METHOD", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(quantise(options.child[0], Path(options.child[1]), options.num_images))
        return 0
    print(libraries_line("torch", "onnx", "onnxruntime", "tensorrt-rtx-cu13-libs"))
    with tempfile.TemporaryDirectory() as folder:
        fp32 = Path(folder, "fp32.onnx")
        export_s = seconds_of(lambda: export(fp32))
        print(
            f"ResNet-50 at {SIZE} px, {options.num_images} images; goal: at most {MAX_SECONDS} s, {MAX_GB} GB"
        )
        for method in options.methods:
            child = [sys.executable, "-m", "scripts.bench_quantize", "--num-images", str(options.num_images)]
            done = subprocess.run(
                [*child, "--child", method, str(fp32)], check=True, text=True, stdout=subprocess.PIPE
            )
            print(f"  {method:10} {done.stdout.strip()}", flush=True)
        print(f"goal of export, lint and placement: at most {MAX_CHECKS_S} s")
        print(f"  export     {export_s:.1f} s")
        for name, seconds in checks(fp32, Path(folder)):
            print(f"  {name:10} {seconds}")
    return 0


def quantise(method: str, fp32: Path, num_images: int) -> str:
    """Seconds and the memory of this process, in words."""
    from optimize.quantize import quantize_onnx

    rng = np.random.default_rng(0)
    sizes = [min(BATCH, num_images - done) for done in range(0, num_images, BATCH)]
    images = [rng.standard_normal((size, 3, SIZE, SIZE), np.float32) for size in sizes]
    began, worked = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as out:
        quantize_onnx(fp32, images, Path(out), cast(CalibrationMethod, method), 99.99)
    clock, worked = time.perf_counter() - began, time.process_time() - worked
    return f"{clock:.1f} s ({worked:.1f} s of processor time), {peak_gb()}"


def peak_gb() -> str:
    """VmHWM of this process, and not getrusage's, which begins at the parent's."""
    if not _STATUS.exists():
        return "memory is not told by this system"
    high = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return f"{int(high.split()[1]) * 1024 / 1e9:.2f} GB at most"


def export(path: Path) -> None:
    import torch
    import torchvision

    from optimize.export import export_onnx

    torch.manual_seed(0)
    spec = InputSpec(SIZE, SIZE, (0.5,) * 3, (0.5,) * 3, tuple(f"class-{i}" for i in range(1000)))
    export_onnx(torchvision.models.resnet50(), spec, path)


def checks(fp32: Path, folder: Path) -> list[tuple[str, str]]:
    """(what, seconds or why not) of the linter and of the placement by TensorRT-RTX."""
    from deploy.errors import LabError
    from optimize.calibrate import calibrate
    from optimize.files import write_model
    from optimize.qdq import emit
    from optimize.qdq_lint import lint

    image = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), np.float32)
    s8 = emit(onnx.load(fp32), calibrate(fp32, [image], "max", 99.99), "s8")
    found = [("lint", f"{seconds_of(lambda: lint(s8)):.1f} s")]
    file = folder / "int8.onnx"
    write_model(s8, file)
    try:
        placement = import_module("optimize.placement")
        capabilities = placement.COMPUTE_CAPABILITIES
        task = placement.Task("int8", file, True, frozenset())
        seconds = seconds_of(lambda: placement.check(task, capabilities))
        found.append(("placement", f"{seconds:.1f} s for {', '.join(capabilities)}"))
    except (ImportError, LabError) as error:
        found.append(("placement", f"left out ({error})"))
    return found


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
