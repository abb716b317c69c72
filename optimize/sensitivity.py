"""Which layers INT8 hurts, and the fewest to put back in float so that a network passes its gate."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from configs.compress import LatencyConfig
from deploy.errors import LabError
from deploy.progress import progress
from optimize.calibrate import Scales
from optimize.export import INPUT_NAME, OUTPUT_NAME
from optimize.fidelity import snr_db
from optimize.graph_index import GraphIndex
from optimize.int8_latency import layer_times
from optimize.qdq import emit
from optimize.stage import open_session, time_in_turns

Labelled = Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]
"""Batches of float32 [n, 3, size, size] and their classes int64 [n]; read many times, so no generator."""
RESOLUTION = 0.05
"""Of a layer's float time: a smaller gain of INT8 counts as this one, for the clock tells no less apart."""


@dataclass(frozen=True)
class LayerCost:
    """What the logits lose when this layer alone is in INT8, against FP32."""

    node: str
    layer: str
    """The name of its weight, without the last part: that of the module in torch."""
    snr_db: float
    """10 log10 of ||logits||^2 / ||difference||^2, over all images; infinite where they are equal."""
    cross_entropy: float
    """Rise of the mean, nats."""
    top1_drop: float
    """Points."""

    @property
    def noise(self) -> float:
        """The inverse of the SNR, as a ratio: what adds up over layers."""
        return float(10 ** (-self.snr_db / 10))


@dataclass(frozen=True)
class LayerRank(LayerCost):
    """The times are None where latency is off."""

    float_ms: float | None
    int8_ms: float | None

    @property
    def score(self) -> float:
        """Noise that a millisecond buys off; noise alone without times."""
        if self.float_ms is None or self.int8_ms is None:
            return self.noise
        return self.noise / max(self.float_ms - self.int8_ms, RESOLUTION * self.float_ms)


@dataclass(frozen=True)
class MixedPlan:
    """Top-1 as shares of `num_images`; p50 in ms at batch 1, measured in turns, None where latency is off."""

    met: bool
    """False: no prefix of `order` that leaves a layer in INT8 meets the gate; `keep_float` then names all."""
    keep_float: tuple[str, ...]
    """Node names, for `emit` and `quantize_onnx`; the first of `order`."""
    order: tuple[LayerRank, ...]
    """All layers, as they would go back to float."""
    max_drop: float
    num_images: int
    num_evaluations: int
    fp32_top1: float
    int8_top1: float
    top1: float
    fp32_ms: float | None
    int8_ms: float | None
    latency_ms: float | None
    no_gain: tuple[str, ...]
    """Layers that this machine computes no faster in INT8."""


def layer_costs(
    fp32: Path, scales: Scales, images: Labelled, threads: int, label: str = "sensitivity"
) -> list[LayerCost]:
    """Of every Conv and Gemm node, in the order of the network.

    Each is quantised alone: these errors add up (ResNet-18 on digits, calibrated by max: 0.00042 over the
    layers, 0.00036 measured of all together). The other way, all but one in INT8, is a small difference of
    two large errors: with its eight first layers in float 0.00025 of the noise is left on other images, with
    the eight first of this order 0.00008 (percentile: 0.00032 and 0.00013). The SNR ranks, not top-1: of 64
    images one is 1.6 points.

    Raises LabError for no images.
    """
    model = onnx.load(fp32)
    nodes = weighted_nodes(model)
    reference = logits_of(model, images, threads)
    labels = np.concatenate([labels for _, labels in images])
    names = {node.name for node in nodes}
    costs = []
    with progress(label, len(nodes)) as advance:
        for node in nodes:
            alone = emit(model, scales, "u8", names - {node.name})
            logits = logits_of(alone, images, threads)
            costs.append(
                LayerCost(
                    node.name,
                    node.input[1].rpartition(".")[0] or node.input[1],
                    snr_db(logits, reference),
                    cross_entropy(logits, labels) - cross_entropy(reference, labels),
                    100 * (top1(reference, labels) - top1(logits, labels)),
                )
            )
            advance(1)
    return costs


def plan_mixed(
    fp32: Path,
    scales: Scales,
    ranked_on: Labelled,
    gated_on: Labelled,
    max_drop: float,
    latency: LatencyConfig,
) -> MixedPlan:
    """The fewest layers back in float, in the order of their score, so that top-1 keeps to the gate.

    max_drop: points of top-1 that the result may be below FP32 on `gated_on`.
    ranked_on: images for :func:`layer_costs`; 64 rank well enough.

    The number is found by bisection, and the plan is one that was evaluated: top-1 need not fall with every
    layer, so fewer might do by luck, but what is returned meets the gate. A network costs log2(layers) + 3
    evaluations. Top-1 is that of the `u8` form in ONNX Runtime with exact kernels; the `s8` form has the same
    integers. Raises LabError for no images.
    """
    model = onnx.load(fp32)
    costs = layer_costs(fp32, scales, ranked_on, latency.threads)
    order = _ranked(model, scales, costs, latency)
    labels = np.concatenate([labels for _, labels in gated_on]) if gated_on else np.zeros(0, np.int64)
    shares: dict[int, float] = {}

    def share(count: int) -> float:
        if count not in shares:
            network = emit(model, scales, "u8", kept(order, count)) if count < len(order) else model
            shares[count] = top1(logits_of(network, gated_on, latency.threads), labels)
        return shares[count]

    def passes(count: int) -> bool:
        return 100 * (share(len(order)) - share(count)) <= max_drop + 1e-9

    fails, count = -1, len(order)
    if passes(0):
        count = 0
    else:
        fails = 0
        while count - fails > 1:
            middle = (fails + count) // 2
            fails, count = (fails, middle) if passes(middle) else (middle, count)
    networks = [model, emit(model, scales, "u8"), emit(model, scales, "u8", kept(order, count))]
    times: Sequence[float | None] = [None] * 3
    if latency.seconds:
        image = gated_on[0][0][:1]
        times = time_in_turns([network.SerializeToString() for network in networks], image, latency)
    return MixedPlan(
        met=count < len(order),
        keep_float=tuple(sorted(kept(order, count))),
        order=tuple(order),
        max_drop=max_drop,
        num_images=len(labels),
        num_evaluations=len(shares),
        fp32_top1=share(len(order)),
        int8_top1=share(0),
        top1=share(count),
        fp32_ms=times[0],
        int8_ms=times[1],
        latency_ms=times[2],
        no_gain=tuple(
            r.node
            for r in order
            if r.float_ms is not None and r.int8_ms is not None and r.int8_ms >= r.float_ms
        ),
    )


def format_plan(plan: MixedPlan) -> str:
    """A line on the accuracy, one on the time, one for what does not hold."""
    back = ", ".join(r.layer for r in plan.order[: len(plan.keep_float)]) or "none"
    lines = [
        f"mixed: {len(plan.keep_float)} of {len(plan.order)} layers back in float ({back}); top-1 "
        f"{plan.top1:.2%} of {plan.num_images} images, FP32 {plan.fp32_top1:.2%}, INT8 {plan.int8_top1:.2%}"
    ]
    if not plan.met:
        lines[0] = (
            f"GATE: no mixture of INT8 and float is within {plan.max_drop:g} points of FP32's "
            f"{plan.fp32_top1:.2%} (INT8 {plan.int8_top1:.2%}): the plan is FP32"
        )
    if plan.fp32_ms is not None and plan.latency_ms is not None and plan.int8_ms is not None:
        lines.append(
            f"p50 at batch 1 here: {plan.latency_ms:.3f} ms, FP32 {plan.fp32_ms:.3f}, INT8 {plan.int8_ms:.3f}"
        )
        if plan.met and plan.latency_ms >= plan.fp32_ms:
            lines.append("the mixture is no faster than FP32 on this machine: only its file is smaller")
        if plan.no_gain:
            lines.append(f"INT8 brings no time to {len(plan.no_gain)} of {len(plan.order)} layers here")
    return "\n".join(lines)


def weighted_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Every Conv and Gemm with a constant weight."""
    index = GraphIndex(model.graph)
    return [node for node in model.graph.node if index.weight(node) is not None]


def kept(order: Sequence[LayerRank], count: int) -> Set[str]:
    return {rank.node for rank in order[:count]}


def logits_of(model: onnx.ModelProto, images: Labelled, threads: int) -> npt.NDArray[np.float32]:
    """float32 [n, classes], as the runner on a CPU computes them. Raises LabError for no images."""
    if not images:
        raise LabError("sensitivity: 0 images, at least 1 is needed and 64 are usual; check the data split")
    session = open_session(model.SerializeToString(), threads)
    return np.concatenate([session.run([OUTPUT_NAME], {INPUT_NAME: batch})[0] for batch, _ in images])


def cross_entropy(logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> float:
    """Mean in nats."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    true = shifted[np.arange(len(labels)), labels]
    return float((np.log(np.exp(shifted).sum(1)) - true).mean())


def top1(logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> float:
    return float((logits.argmax(1) == labels).mean())


def _ranked(
    model: onnx.ModelProto, scales: Scales, costs: Sequence[LayerCost], latency: LatencyConfig
) -> list[LayerRank]:
    """The highest score first."""
    times = {}
    if latency.seconds:
        with progress("latency", len(costs)) as advance:
            times = layer_times(model, scales, latency, advance)
    ranks = [
        LayerRank(
            **vars(cost),
            float_ms=times[cost.node].float_ms if times else None,
            int8_ms=times[cost.node].int8_ms if times else None,
        )
        for cost in costs
    ]
    return sorted(ranks, key=lambda rank: -rank.score)
