"""The time of each layer on a GPU, from its ceilings and a few numbers fitted on published figures.

docs/estimator.md holds the formula, the numbers and how far they are from figures that they have not seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.graph_cost import ITEM_BYTES, Layer

CONSTANTS = Path(__file__).with_name("estimator.json")
"""Written by `python -m scripts.fit_estimator` and, for CPUs, `python -m scripts.bench_estimate`."""
TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (32, 64), (32, 32))
"""Rows and columns of the output that a block of threads makes: those of NVIDIA's own kernels."""
SPLITS = (1, 2, 4)
"""Blocks that share the sum of one tile."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Processor:
    """A GPU at the clocks of a power mode. Rates are dense, a multiply-add counts 2."""

    num_sms: int
    clock_ghz: float
    ops_per_clock_per_sm: Mapping[str, float]
    """By the precision of a layer."""
    memory_gb_per_s: float
    l2_mib: float
    volta: bool
    """The generation of Xavier, before Ampere."""
    dla_ghz: tuple[float, ...] = ()
    """Of each core."""
    dla_ops_per_clock: float = 0.0
    """INT8, of a core."""


@dataclass(frozen=True)
class Fitted:
    """What data sheets do not say. Shares are 0 to 1."""

    launch_clocks: float
    """GPU clocks that every layer costs whatever its size: its start, filling and draining its pipeline."""
    product_share: float
    """Of the peak that a full SM reaches."""
    load_bytes: float
    """That an SM takes in each clock from the L2 cache."""
    memory_share: float
    """Of the memory's bandwidth."""
    cache_share: float
    """Of the L2 cache that serves what was just written."""
    volta_launch: float
    """Factor on launch_clocks for Volta."""
    untuned: float
    """Time of an ordinary engine over that of a submission to MLPerf, whose kernels were chosen by hand."""
    dla_product_share: float
    dla_memory_share: float
    """Of the memory's bandwidth, that one DLA core draws."""


@dataclass(frozen=True)
class Spread:
    """Factors on a time or a power, below and above: eight of ten published figures lie between them."""

    low: float
    high: float


@dataclass(frozen=True)
class PowerFit:
    """Watts at the wall = board + memory x GB/s + pJ x 10^12 operations a second."""

    board_w: float
    memory_w_per_gb_per_s: float
    pj_per_op: float
    volta_pj_per_op: float


@dataclass(frozen=True)
class Constants:
    latency: Fitted
    spread: Spread
    power: PowerFit
    power_spread: Spread
    cpu_spread: Spread

    @classmethod
    def read(cls) -> Constants:
        raw: dict[str, Any] = json.loads(CONSTANTS.read_text(encoding="utf-8"))
        return cls(
            latency=Fitted(**raw["latency"]),
            spread=Spread(**raw["spread"]),
            power=PowerFit(**raw["power"]),
            power_spread=Spread(**raw["power_spread"]),
            cpu_spread=Spread(**raw["cpu_spread"]),
        )


@dataclass(frozen=True)
class Work:
    """What no fitted number changes. Candidates are tiles and splits; the best is chosen for each layer."""

    products: Floats
    """[candidates, layers]: clocks of the SM with most to do, at its peak."""
    loads: Floats
    """[candidates, layers]: bytes that this SM takes in."""
    activations: Floats
    """[layers]: bytes."""
    weights: Floats


def work_of(layers: Sequence[Layer], processor: Processor) -> Work:
    """Waves of tiles over the SMs: a layer with fewer tiles than SMs leaves the others idle."""
    rows, columns, depth, groups = (
        np.array([getattr(layer, name) for layer in layers], float)
        for name in ("rows", "columns", "depth", "groups")
    )
    itemsize = np.array([ITEM_BYTES[layer.precision] for layer in layers], float)
    peak = np.array([processor.ops_per_clock_per_sm.get(layer.precision, np.inf) for layer in layers], float)
    products, loads = [], []
    for height, width in TILES:
        tiles = np.ceil(rows / height) * np.ceil(columns / width) * groups
        for split in SPLITS:
            steps = np.ceil(tiles * split / processor.num_sms) * np.ceil(depth / split)
            products.append(steps * 2 * height * width / peak)
            loads.append(steps * (height + width) * itemsize)
    return Work(
        np.array(products),
        np.array(loads),
        np.array([layer.read_bytes + layer.write_bytes for layer in layers], float),
        np.array([layer.weight_bytes for layer in layers], float),
    )


def layer_seconds(work: Work, processor: Processor, fitted: Fitted) -> Floats:
    """[layers]: launch + the longer of products and memory. Of a tuned engine.

    From memory comes what the L2 cache does not hold: of a layer's input and output, and of all weights
    together, for they are read again only by the next query.
    """
    launch = fitted.launch_clocks * (fitted.volta_launch if processor.volta else 1.0)
    clocks = np.maximum(work.products / fitted.product_share, work.loads / fitted.load_bytes).min(axis=0)
    cached = fitted.cache_share * processor.l2_mib * 2**20
    missed = np.clip(1 - cached / np.maximum(work.activations, 1), 0, 1)
    weights_missed = max(0.0, 1 - cached / max(1.0, float(work.weights.sum())))
    moved = work.activations * missed + work.weights * weights_missed
    memory = moved / (processor.memory_gb_per_s * 1e9 * fitted.memory_share)
    result: Floats = launch / (processor.clock_ghz * 1e9) + np.maximum(
        clocks / (processor.clock_ghz * 1e9), memory
    )
    return result


def dla_images_per_s(layers: Sequence[Layer], processor: Processor, fitted: Fitted, batch: int) -> float:
    """All DLA cores, each with its own batch of int8 `layers`; 0.0 where there are none."""
    bandwidth = processor.memory_gb_per_s * 1e9 * fitted.dla_memory_share
    total = 0.0
    for ghz in processor.dla_ghz:
        peak = processor.dla_ops_per_clock * ghz * 1e9 * fitted.dla_product_share
        total += batch / sum(max(2 * layer.macs / peak, _moved(layer) / bandwidth) for layer in layers)
    return total


def _moved(layer: Layer) -> int:
    return layer.read_bytes + layer.write_bytes + layer.weight_bytes


def watts(processor: Processor, ops_per_s: float, power: PowerFit) -> float:
    """Of the whole board at the wall, while it does nothing else."""
    pj = power.volta_pj_per_op if processor.volta else power.pj_per_op
    idle = power.board_w + power.memory_w_per_gb_per_s * processor.memory_gb_per_s
    return idle + pj * ops_per_s * 1e-12
