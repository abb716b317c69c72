"""`python -m scripts.scaling_model`: a step's time on 8 to 512 GPUs, and how far the formula holds.

docs/scaling.md explains it and holds what this prints.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

BACKWARD_SHARE = 2 / 3
"""Of a step's computing: two of the three products of a layer (of its input, of its weights) are backward."""
BUCKET_BYTES = 25 * 2**20
"""Of gradients in one exchange: DDP's default, the part that nothing is left to hide behind."""


@dataclass(frozen=True)
class Cluster:
    """Bandwidths are those of the data sheet, GB/s in one direction."""

    gpus_per_node: int
    inside: float
    """Of each GPU to the others of its node."""
    network: float
    """Of a node to the others, all its cards together."""
    latency_us: float = 5.0
    """Of one message."""


@dataclass(frozen=True)
class Parameters:
    """What the data sheets do not say; fitted on published tables."""

    efficiency: float
    """Share of the bandwidth that a collective reaches."""
    spread: float
    """Standard deviation of a GPU's step time, as a share of it: all wait for the slowest."""
    fixed_ms: float
    """Of a step, whatever the number of images: launches, optimiser."""


@dataclass(frozen=True)
class Measured:
    images_per_s: float
    gpus: int
    batch: int
    """Images a GPU."""


@dataclass(frozen=True)
class System:
    """One software on one kind of machine: the first measurement is what the others are predicted from."""

    name: str
    source: str
    cluster: Cluster
    gradient_mb: float
    start: Measured
    rest: tuple[Measured, ...]


def exchange_s(cluster: Cluster, gpus: int, megabytes: float, efficiency: float) -> float:
    """Seconds of an all-reduce: a ring inside each node, and one between the nodes that carries the shares.

    A ring of n moves 2 (n - 1) / n of the bytes through each link in 2 (n - 1) messages (Patarasuk and Yuan
    2009). Between the nodes each GPU exchanges the share that it holds after the reduce-scatter inside, all
    through the cards of the node: together again 2 (nodes - 1) / nodes of the bytes.
    """
    inside = min(gpus, cluster.gpus_per_node)
    nodes = math.ceil(gpus / cluster.gpus_per_node)
    seconds = 0.0
    for ranks, bandwidth in ((inside, cluster.inside), (nodes, cluster.network)):
        seconds += 2 * (ranks - 1) / ranks * megabytes / 1e3 / (bandwidth * efficiency)
        seconds += 2 * (ranks - 1) * cluster.latency_us * 1e-6
    return seconds


def step_s(
    cluster: Cluster, gpus: int, batch: int, image_s: float, megabytes: float, given: Parameters
) -> float:
    """Seconds of a step: computing, as slow as the slowest GPU, and what of the exchange nothing hides.

    The backward pass hides the exchange but for the last bucket. The slowest of n is sqrt(2 ln n) standard
    deviations behind the mean, the leading term for normal times.
    """
    computing = batch * image_s
    slowest = given.spread * math.sqrt(2 * math.log(gpus)) * computing
    exchange = exchange_s(cluster, gpus, megabytes, given.efficiency) if gpus > 1 else 0.0
    last = min(1.0, BUCKET_BYTES / (megabytes * 1e6)) * exchange
    exposed = max(exchange - BACKWARD_SHARE * computing, last)
    return computing + given.fixed_ms * 1e-3 + slowest + exposed


def image_s(system: System, given: Parameters) -> float:
    """Seconds of computing an image, with which the formula gives the first measurement: by bisection."""
    start = system.start
    measured = start.batch * start.gpus / start.images_per_s
    low, high = 0.0, measured / start.batch
    for _ in range(60):
        middle = (low + high) / 2
        found = step_s(system.cluster, start.gpus, start.batch, middle, system.gradient_mb, given)
        low, high = (middle, high) if found < measured else (low, middle)
    return low


def predict(system: System, gpus: int, batch: int, given: Parameters) -> float:
    """Images a second over all GPUs."""
    each = image_s(system, given)
    return gpus * batch / step_s(system.cluster, gpus, batch, each, system.gradient_mb, given)


def errors(systems: Sequence[System], given: Parameters) -> list[float]:
    """Predicted over measured, less 1, of every measurement but the first of each system."""
    return [
        predict(system, point.gpus, point.batch, given) / point.images_per_s - 1
        for system in systems
        for point in system.rest
    ]


GRID = [
    Parameters(efficiency, spread, fixed_ms)
    for efficiency, spread, fixed_ms in itertools.product(
        [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        [0.0, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03],
        [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0],
    )
]


def fit(systems: Sequence[System]) -> Parameters:
    """The grid's point with the least mean absolute error, each system weighing the same.

    Of points alike the first: what the tables leave open stays as the data sheet has it.
    """
    return min(GRID, key=lambda given: sum(_cost(system, given) for system in systems))


@cache
def _cost(system: System, given: Parameters) -> float:
    return statistics.mean(abs(error) for error in errors([system], given))


RESNET50, RESNET101, VGG16, INCEPTION3 = 102.2, 178.2, 553.4, 95.3
"""MB of fp32 gradients (25.56, 44.55, 138.36 and 23.83 million parameters)."""
DGX_P100 = Cluster(8, 80.0, 50.0)
DGX_V100 = Cluster(8, 150.0, 50.0)
DGX_A100 = Cluster(8, 300.0, 200.0)
DGX_H100 = Cluster(8, 450.0, 400.0)
ROCE_P100 = Cluster(4, 15.75, 3.125)
DLE = "NVIDIA DeepLearningExamples 729963d"
LAMBDA = "lambdal/deeplearning-benchmark aa5addb"
MLPERF = "mlcommons/training_results"
TENSORFLOW = "tensorflow/tensorflow 5984ffe, docs_src/performance/benchmarks.md"
HOROVOD = "horovod/horovod 27743d0, docs/benchmarks.rst"


def one_to_eight(name: str, source: str, cluster: Cluster, batch: int, one: float, eight: float) -> System:
    return System(name, source, cluster, RESNET50, Measured(one, 1, batch), (Measured(eight, 8, batch),))


def at_512(name: str, gradient_mb: float, rate: float, efficiency: float) -> System:
    """Horovod's page states the efficiency alone; a P100's rate is TensorFlow's, which cancels in the ratio
    but for how much time there is to hide the exchange behind."""
    start = Measured(rate, 1, 64)
    end = Measured(512 * efficiency * rate, 512, 64)
    return System(name, HOROVOD, ROCE_P100, gradient_mb, start, (end,))


SYSTEMS = (
    System("Lambda H100, AMP", LAMBDA, DGX_H100, RESNET50, Measured(2790, 1, 1280),
           (Measured(5532, 2, 1280), Measured(11053, 4, 1280), Measured(22101, 8, 1280))),
    one_to_eight("Lambda H100, TF32", LAMBDA, DGX_H100, 1280, 1893, 14985),
    one_to_eight("Lambda A100, AMP", LAMBDA, DGX_A100, 1280, 1582, 11439),
    one_to_eight("DLE MXNet A100, AMP", DLE, DGX_A100, 512, 3410.5, 26673.7),
    one_to_eight("DLE MXNet A100, TF32", DLE, DGX_A100, 512, 1055.8, 8247.4),
    one_to_eight("DLE PyTorch A100, AMP", DLE, DGX_A100, 256, 2470, 16621),
    one_to_eight("DLE PyTorch A100, TF32", DLE, DGX_A100, 256, 938, 7248),
    one_to_eight("DLE PyTorch V100, AMP", DLE, DGX_V100, 256, 1200, 8322),
    one_to_eight("DLE PyTorch V100, FP32", DLE, DGX_V100, 256, 367, 2855),
    one_to_eight("DLE Paddle A100, AMP", DLE, DGX_A100, 256, 2897, 23874),
    one_to_eight("DLE Paddle A100, TF32", DLE, DGX_A100, 256, 1024, 8013),
    one_to_eight("DLE TF1 A100, AMP", DLE, DGX_A100, 256, 2375, 17400),
    one_to_eight("DLE TF1 A100, TF32", DLE, DGX_A100, 256, 909, 7000),
    System("TensorFlow P100, VGG-16", TENSORFLOW, DGX_P100, VGG16, Measured(154, 1, 64),
           (Measured(295, 2, 64), Measured(584, 4, 64), Measured(1081, 8, 64))),
    System("MLPerf MXNet H100, 8 to 64", f"{MLPERF}_v4.0", DGX_H100, RESNET50,
           Measured(57295, 8, 400), (Measured(314092, 64, 50),)),
    System("MLPerf MXNet A100, 8 to 64", f"{MLPERF}_v2.0", DGX_A100, RESNET50,
           Measured(27185, 8, 408), (Measured(167596, 64, 51),)),
    at_512("Horovod P100, Inception V3", INCEPTION3, 142, 0.90),
    at_512("Horovod P100, ResNet-101", RESNET101, 129, 0.90),
    at_512("Horovod P100, VGG-16", VGG16, 154, 0.68),
)  # fmt: skip


def main() -> int:
    print(report())
    return 0


def report() -> str:
    """The page's tables, in Markdown."""
    given = fit(SYSTEMS)
    lines = [
        f"Fitted: efficiency {given.efficiency:g}, spread {given.spread:.2%}, "
        f"fixed {given.fixed_ms:g} ms a step.",
        "",
        "| system | GPUs | images a GPU | measured | formula | error | error, family left out |",
        "|---|---|---|---|---|---|---|",
    ]
    fitted: list[float] = []
    left_out: list[float] = []
    for system in SYSTEMS:
        without = fit([other for other in SYSTEMS if family(other) != family(system)])
        pairs = zip(system.rest, errors([system], given), errors([system], without), strict=True)
        for point, error, unseen in pairs:
            formula = point.images_per_s * (1 + error)
            lines.append(
                f"| {system.name} | {point.gpus} | {point.batch} | {point.images_per_s:,.0f} | "
                f"{formula:,.0f} | {error:+.1%} | {unseen:+.1%} |"
            )
            fitted.append(abs(error))
            left_out.append(abs(unseen))
    for what, found in (("fitted", fitted), ("with the system's family left out of the fit", left_out)):
        lines += [
            "",
            f"Absolute error {what}: median {statistics.median(found):.1%}, worst {max(found):.1%}, "
            f"{len(found)} measurements.",
        ]
    lines += [
        "",
        "| H100 GPUs | batch 256 a GPU: images/s | efficiency | global batch 8192: images/s | efficiency |",
        "|---|---|---|---|---|",
    ]
    start = Measured(2790, 1, 256)
    ours = System("ResNet-50", LAMBDA, DGX_H100, RESNET50, start, ())
    for gpus in (8, 16, 32, 64, 128, 256, 512):
        cells = []
        for batch in (256, 8192 // gpus):
            rate = predict(ours, gpus, batch, given)
            cells.append(f"{rate:,.0f} | {rate / gpus / start.images_per_s:.1%}")
        lines.append(f"| {gpus} | {' | '.join(cells)} |")
    return "\n".join(lines)


def family(system: System) -> str:
    """Systems of one source on one machine are no independent witnesses."""
    return f"{system.source} {system.cluster}"


if __name__ == "__main__":
    sys.exit(main())
