"""`python -m scripts.bench_estimate`: estimates for this CPU against measurements of the same run.

Measures the ceilings (`scripts.roofline`), makes bundles of three networks with random weights, estimates
and measures each as `python -m deploy bench` does. Prints the table of docs/estimator.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torchvision
from PIL import Image

from deploy.bench import bench
from deploy.bundle import Bundle, Variant, write_bundle
from deploy.errors import LabError
from deploy.estimate import estimate
from deploy.input_spec import InputSpec
from deploy.target import load_target
from scripts.fit_estimator import spread, update_constants
from scripts.published_latency import write_files
from scripts.roofline import measure_cpu

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2")
VARIANTS = ("fp32", "int8-cpu")
BATCHES = (1, 16)
SIZE, NUM_CLASSES = 224, 1000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_estimate", description=__doc__)
    parser.add_argument("--threads", type=int, help="of the CPU (default: all usable cores)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement (default: 6)")
    parser.add_argument("--rounds", type=int, default=10, help="of the ceilings (default: 10)")
    parser.add_argument("--write", action="store_true", help="write the spread into deploy/estimator.json")
    options = parser.parse_args()
    try:
        with TemporaryDirectory() as folder:
            print(compare(Path(folder), options.threads, options.seconds, options.rounds, options.write))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(folder: Path, threads: int | None, seconds: float, rounds: int, write: bool) -> str:
    """The table in Markdown, with the median and the worst error."""
    ceilings = measure_cpu(threads, rounds, 0.03)
    ceilings.write(folder / "roofline.json")
    lines = [
        f"{ceilings.cpu}, {ceilings.threads} threads, {ceilings.runtime}",
        "",
        "| network | variant | batch | estimated ms | measured ms | error |",
        "|---|---|---|---|---|---|",
    ]
    errors = []
    for name in NETWORKS:
        bundle = random_bundle(name, folder / name)
        guesses = {
            (one.variant, one.batch): one.latency_ms.p50
            for one in estimate(
                bundle, load_target("cpu"), variants=VARIANTS, batches=BATCHES,
                ceilings=folder / "roofline.json",
            )
        }  # fmt: skip
        measured_ms = {
            (m.variant, m.batch): m.latency.p50_ms
            for m in bench(
                bundle, variants=VARIANTS, threads=threads, batches=BATCHES, throughput_batches=(),
                seconds=seconds,
            )
            if m.latency
        }  # fmt: skip
        for (variant, batch), measured in measured_ms.items():
            guess = guesses[variant, batch]
            errors.append(guess / measured - 1)
            lines.append(
                f"| {name} | {variant} | {batch} | {guess:.2f} | {measured:.2f} | {errors[-1]:+.0%} |"
            )
    sizes = [abs(error) for error in errors]
    lines += [
        "",
        f"Absolute error over {len(sizes)} figures: median {statistics.median(sizes):.1%}, worst "
        f"{max(sizes):.0%}; goal: a median under 25 %.",
    ]
    if write:
        update_constants({"cpu_spread": asdict(spread(errors))})
    return "\n".join(lines)


def random_bundle(name: str, folder: Path) -> Bundle:
    """torchvision's network of that name, untrained: no time depends on the weights."""
    network = getattr(torchvision.models, name)(weights=None)
    models = write_files(network, SIZE, NUM_CLASSES, folder / "work", VARIANTS)
    picture = folder / "work" / "sample.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)).save(picture)
    return write_bundle(
        folder / "bundle",
        name=name,
        input=InputSpec(
            size=SIZE, resize=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3,
            class_names=tuple(f"class{i}" for i in range(NUM_CLASSES)),
        ),
        variants=[
            Variant(variant, "", variant.removesuffix("-cpu"), "onnxruntime", 0, {}, {}) for variant in models
        ],
        models=models,
        samples=[(picture, 0)],
        expected={variant: np.zeros((1, NUM_CLASSES), np.float32) for variant in models},
        versions={},
        commands=["python -m scripts.bench_estimate"],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
