"""Which layers of any network INT8 hurts, by what each output loses, and the fewest to put back in float."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from deploy.progress import progress
from deploy.score import part_axis
from optimize.calibrate import Scales
from optimize.fidelity import snr_db
from optimize.qdq import emit
from optimize.sensitivity import weighted_nodes
from optimize.stage import open_session

Feed = dict[str, NDArray[Any]]
"""One sample: every input with a batch of 1."""
EQUAL_DB = 300.0
"""The ratio of outputs that are equal, for JSON knows no infinity."""


@dataclass(frozen=True)
class Closeness:
    """Of one output to that of the float network, over all samples."""

    output: str
    snr_db: float
    """10 log10 of ||float||^2 / ||difference||^2 of the output's worst part, at most 300; -300 where shapes
    differ or a value is not finite. Parts: see :func:`_parts`."""
    cosine: float
    top1: float
    """Share, 0 to 1, of the rows along the last axis whose largest value stands in the same place."""


@dataclass(frozen=True)
class LayerLoss:
    """What the worst output keeps when this layer alone is in INT8; None: there was no time to try it."""

    layer: str
    op: str
    snr_db: float | None


@dataclass(frozen=True)
class FloatPlan:
    met: bool
    keep_float: tuple[str, ...]
    """Layers back in float, the one that costs most first."""
    order: tuple[LayerLoss, ...]
    """All, as they would go back."""
    int8_snr_db: float
    """Of the worst output with every layer in INT8."""
    seconds: float


def answers(model: onnx.ModelProto, feeds: Sequence[Feed], threads: int) -> list[list[NDArray[Any]]]:
    """Of each sample all outputs, as the runner on a CPU computes them."""
    session = open_session(model.SerializeToString(), threads)
    return [session.run(None, feed) for feed in feeds]


def closeness(
    names: Sequence[str], actual: Sequence[Sequence[NDArray[Any]]], expected: Sequence[Sequence[NDArray[Any]]]
) -> list[Closeness]:
    """Of every output, by name; of integers a ratio tells nothing, so they count as equal or not."""
    return [
        _close(name, [answer[i] for answer in actual], [answer[i] for answer in expected])
        for i, name in enumerate(names)
    ]


def _close(name: str, actual: list[NDArray[Any]], expected: list[NDArray[Any]]) -> Closeness:
    comparable = all(
        a.shape == e.shape and np.isfinite(a).all() for a, e in zip(actual, expected, strict=True)
    )
    if not comparable:
        return Closeness(name, -EQUAL_DB, 0.0, 0.0)
    got, wanted = (np.concatenate([array.ravel() for array in arrays]) for arrays in (actual, expected))
    ratios = [snr_db(a, e) for a, e in _parts(actual, expected)]
    ratio = max(-EQUAL_DB, min(EQUAL_DB, *ratios))
    lengths = float(np.linalg.norm(got.astype(np.float64)) * np.linalg.norm(wanted.astype(np.float64)))
    cosine = float(got.astype(np.float64) @ wanted.astype(np.float64)) / lengths if lengths else 1.0
    same = [
        (a.argmax(-1) == e.argmax(-1)).ravel()
        for a, e in zip(actual, expected, strict=True)
        if a.ndim and a.shape[-1]
    ]
    return Closeness(name, ratio, cosine, float(np.concatenate(same).mean()) if same else 1.0)


def _parts(
    actual: list[NDArray[Any]], expected: list[NDArray[Any]]
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Shares apart from other values, each part flat: see :func:`deploy.score.part_axis`."""
    whole = [np.concatenate([array.ravel() for array in arrays]) for arrays in (actual, expected)]
    shape = expected[0].shape
    axis = part_axis(shape)
    if axis is None or any(array.shape != shape for array in expected):
        return [(whole[0], whole[1])]
    got, wanted = (
        np.moveaxis(np.stack(arrays), axis + 1, 0).reshape(shape[axis], -1) for arrays in (actual, expected)
    )
    shares = ((wanted >= 0) & (wanted <= 1)).all(1)
    return [(got[mask], wanted[mask]) for mask in (shares, ~shares) if mask.any()]


def layer_losses(
    model: onnx.ModelProto, scales: Scales, feeds: Sequence[Feed], threads: int, deadline: float
) -> list[LayerLoss]:
    """Of every layer, quantised alone (see `optimize.sensitivity`), the one that costs most first.

    Begins at both ends of the network, where what breaks most often is; what is not tried by `deadline`
    (of `time.monotonic`) comes last, in that turn.
    """
    nodes = weighted_nodes(model)
    names = {node.name for node in nodes}
    outputs = [output.name for output in model.graph.output]
    reference = answers(model, feeds, threads)
    turn = _from_both_ends(nodes)
    found: dict[str, float] = {}
    with progress("sensitivity", len(nodes)) as advance:
        for node in turn:
            if time.monotonic() > deadline:
                break
            alone = emit(model, scales, "u8", names - {node.name})
            close = closeness(outputs, answers(alone, feeds, threads), reference)
            found[node.name] = min(one.snr_db for one in close)
            advance(1)
    losses = [LayerLoss(node.name, node.op_type, found.get(node.name)) for node in turn]
    return sorted(losses, key=lambda loss: math.inf if loss.snr_db is None else loss.snr_db)


def plan_float(
    model: onnx.ModelProto,
    scales: Scales,
    ranked_on: Sequence[Feed],
    gated_on: Sequence[Feed],
    passes: Callable[[Sequence[Closeness]], bool],
    threads: int,
    seconds: float,
) -> FloatPlan:
    """The fewest layers back in float, in the order of what they cost, so that the outputs pass.

    Found by bisection, so log2(layers) + 1 networks are run after the ranking; nothing is ranked where all
    of INT8 passes. `seconds` bounds the ranking.
    """
    start = time.monotonic()
    outputs = [output.name for output in model.graph.output]
    reference = answers(model, gated_on, threads)

    def close(kept: Set[str]) -> list[Closeness]:
        return closeness(outputs, answers(emit(model, scales, "u8", kept), gated_on, threads), reference)

    whole = close(frozenset())
    int8_snr_db = min(one.snr_db for one in whole)
    if passes(whole):
        return FloatPlan(True, (), (), int8_snr_db, time.monotonic() - start)
    order = layer_losses(model, scales, ranked_on, threads, start + seconds)
    fails, count = 0, len(order)
    while count - fails > 1:
        middle = (fails + count) // 2
        if passes(close({loss.layer for loss in order[:middle]})):
            count = middle
        else:
            fails = middle
    kept = tuple(loss.layer for loss in order[:count])
    return FloatPlan(count < len(order), kept, tuple(order), int8_snr_db, time.monotonic() - start)


def worst(close: Sequence[Closeness]) -> Mapping[str, float]:
    """The least of each figure over the outputs."""
    return {"snr_db": min(one.snr_db for one in close), "top1": min(one.top1 for one in close)}


def _from_both_ends(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    backwards = list(reversed(nodes))
    mixed = [node for pair in zip(backwards, nodes, strict=True) for node in pair]
    return list({node.name: node for node in mixed}.values())
