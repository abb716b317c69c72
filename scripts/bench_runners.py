"""`python -m scripts.bench_runners`: our runner against the bare library, on one file in one process.

p50 of single queries of ResNet-18 and ResNet-50 at 224 px and of a network of one pool and one small matrix
product, where nothing hides what a call costs. The two take turns, and the first of a round is the second of
the next. Both sides get the same options; the bare one checks nothing and copies no more than it has to.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torchvision
from torch import nn

from deploy.backends import cpu_threads, open_runner
from deploy.bundle import Bundle, Variant
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.manifest import LOGITS, image_tensors
from deploy.measure import measure_latency, percentile
from optimize.calibrate import calibrate
from optimize.export import export_onnx
from optimize.files import write_model
from optimize.qdq import emit
from scripts.bench_lines import libraries_line, ratio_line

Call = Callable[[], object]
Image = npt.NDArray[np.float32]
GOAL = "at most 1.03"
WARMUP_S = 0.05
TINY_SIZE = 8


def bare_onnxruntime(path: Path, threads: int, image: Image) -> Call:
    from deploy.ort import open_session

    session, _ = open_session(path, threads, emulate=False)
    feed = {session.get_inputs()[0].name: image}
    return lambda: session.run(None, feed)


def bare_openvino(path: Path, threads: int, image: Image) -> Call:
    from deploy.ov import compile_model

    compiled, _ = compile_model(path, threads, emulate=False)
    request, feed = compiled.create_infer_request(), {compiled.inputs[0].any_name: image}
    return lambda: request.infer(feed, share_inputs=True)


# TensorRT has scripts/bench_tensorrt.py of its own: it knows more ways to be called bare.
BARE: dict[str, Callable[[Path, int, Image], Call]] = {
    "onnxruntime": bare_onnxruntime,
    "openvino": bare_openvino,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_runners", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--backends", nargs="+", choices=list(BARE), default=list(BARE))
    parser.add_argument("--threads", type=int, help="default: all usable cores")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn (default: 0.5)")
    options = parser.parse_args()
    threads = cpu_threads(options.threads)
    print(libraries_line("onnxruntime", "openvino", "numpy"))
    print(f"batch 1, {threads} threads, {options.rounds} rounds of {options.seconds} s each")
    with tempfile.TemporaryDirectory() as folder:
        for network in options.networks:
            bundle = bundle_of(network, Path(folder, network))
            for variant in (v.name for v in bundle.variants):
                for backend in options.backends:
                    try:
                        p50 = compare(bundle, variant, backend, threads, options.rounds, options.seconds)
                    except LabError as error:
                        print(f"  {backend}: left out ({error})")
                        continue
                    print("\n".join(lines(f"{network} {variant} in {backend}", *p50)))
    return 0


def compare(
    bundle: Bundle, variant: str, backend: str, threads: int, rounds: int, seconds: float
) -> tuple[list[float], list[float]]:
    """p50 in ms of every round: ours, bare."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, *bundle.inputs[0].shape[1:]), np.float32)  # type: ignore[arg-type]  # only the batch may be free
    with open_runner(bundle, variant, backend, threads=threads) as runner:
        feed = {runner.inputs[0].name: image}
        calls = [lambda: runner.infer(feed), BARE[backend](bundle.path(variant), threads, image)]
        found: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                samples = measure_latency(
                    calls[which], warmup_s=WARMUP_S, min_duration_s=seconds, min_count=10
                )
                found[which].append(percentile(samples, 50))
    return found


def lines(what: str, ours: Sequence[float], bare: Sequence[float]) -> list[str]:
    """p50 of both, what ours adds in us, and the ratio."""
    added = [1000 * (a - b) for a, b in zip(ours, bare, strict=True)]
    return [
        f"{what}: {median(ours):.4f} ms, bare {median(bare):.4f} ms; "
        f"added {median(added):.1f} us ({min(added):.1f} to {max(added):.1f})",
        ratio_line("ours over bare", ours, bare, GOAL),
    ]


def bundle_of(network: str, folder: Path) -> Bundle:
    """FP32 and the CPU's INT8 of a network with random weights: a kernel's time does not depend on them."""
    torch.manual_seed(0)
    model, size = NETWORKS[network]()
    spec = InputSpec(size, size, (0.5,) * 3, (0.5,) * 3, tuple(f"class-{i}" for i in range(10)))
    folder.mkdir(parents=True)
    fp32 = folder / "fp32.onnx"
    export_onnx(model, spec, fp32)
    images = np.random.default_rng(1).normal(size=(2, 3, size, size)).astype(np.float32)
    scales = calibrate(fp32, [images], "max", 99.99)
    write_model(emit(onnx.load(fp32), scales, "u8"), folder / "int8-cpu.onnx")
    variants = [
        Variant(name, f"{name}.onnx", name.removesuffix("-cpu"), "onnxruntime", 0, {}, {})
        for name in ("fp32", "int8-cpu")
    ]
    image, logits = image_tensors(spec)
    return Bundle(
        root=folder, name=network, input=spec, inputs=(image,), outputs=(logits,), class_output=LOGITS,
        variants=tuple(variants), samples=(), labels=(), files={}, versions={}, commands=[], created="",
    )  # fmt: skip


def _resnet(name: str) -> tuple[nn.Module, int]:
    return getattr(torchvision.models, name)(num_classes=10), 224


def _tiny() -> tuple[nn.Module, int]:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)), TINY_SIZE


NETWORKS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "resnet18": lambda: _resnet("resnet18"),
    "resnet50": lambda: _resnet("resnet50"),
    "tiny": _tiny,
}


if __name__ == "__main__":
    sys.exit(main())
