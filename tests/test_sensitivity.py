"""The layer that INT8 hurts is found, and put back in float, and no more of them than the gate wants."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from configs.compress import LatencyConfig
from deploy.errors import LabError
from optimize.calibrate import Scales, calibrate
from optimize.fidelity import snr_db
from optimize.qdq import emit
from optimize.sensitivity import (
    Labelled,
    LayerRank,
    cross_entropy,
    format_plan,
    layer_costs,
    logits_of,
    plan_mixed,
    top1,
)
from tests.residual_graph import FRAGILE, LAYERS, images, residual, saved

OFF = LatencyConfig(threads=1, seconds=0.0)


def prepared(folder: Path, outlier: float) -> tuple[Path, Scales, Labelled, Labelled]:
    """The network, its scales, images to rank on and others for the gate, with FP32's classes as labels."""
    model = residual(outlier)
    path = saved(model, folder)
    sets = []
    for seed in (1, 2):
        batches = [images(seed, 64), images(seed + 10, 64)]
        sets.append(
            [
                (b, logits_of(model, [(b, np.zeros(64, np.int64))], 1).argmax(1).astype(np.int64))
                for b in batches
            ]
        )
    return path, calibrate(path, [images(0, 32)], "max", 99.99), sets[0], sets[1]


def test_the_fragile_layer_costs_most(tmp_path: Path) -> None:
    path, scales, ranked_on, _ = prepared(tmp_path, 300.0)
    costs = layer_costs(path, scales, ranked_on, threads=1)
    assert tuple(cost.node for cost in costs) == LAYERS == tuple(cost.layer for cost in costs)
    worst = max(costs, key=lambda cost: cost.noise)
    assert worst.node == FRAGILE
    assert worst.noise > 20 * sorted(cost.noise for cost in costs)[-2]
    assert worst.top1_drop > 5
    assert worst.cross_entropy > 0.05
    sound = layer_costs(saved(residual(), tmp_path), scales_of(tmp_path), ranked_on, threads=1)
    assert max(cost.noise for cost in sound) < 0.02 * worst.noise


def scales_of(folder: Path) -> Scales:
    return calibrate(folder / "fp32.onnx", [images(0, 32)], "max", 99.99)


def test_the_plan_puts_it_back_and_nothing_else(tmp_path: Path) -> None:
    path, scales, ranked_on, gated_on = prepared(tmp_path, 300.0)
    plan = plan_mixed(path, scales, ranked_on, gated_on, 15.0, OFF)
    assert plan.met
    assert plan.keep_float == (FRAGILE,)
    assert plan.order[0].node == FRAGILE
    assert (plan.fp32_top1, plan.num_images, plan.latency_ms) == (1.0, 128, None)
    assert plan.int8_top1 < 0.6 < 0.85 <= plan.top1
    # It is what the emitted network does.
    labels = np.concatenate([labels for _, labels in gated_on])
    network = emit(onnx.load(path), scales, "u8", set(plan.keep_float))
    assert plan.top1 == top1(logits_of(network, gated_on, 1), labels)
    assert plan.num_evaluations <= math.ceil(math.log2(len(LAYERS))) + 3
    assert json.loads(json.dumps(asdict(plan)))["order"][0]["layer"] == FRAGILE
    assert f"1 of 7 layers back in float ({FRAGILE})" in format_plan(plan)


def test_a_network_within_the_gate_stays_whole(tmp_path: Path) -> None:
    path, scales, ranked_on, gated_on = prepared(tmp_path, 1.0)
    plan = plan_mixed(path, scales, ranked_on, gated_on, 15.0, OFF)
    assert (plan.met, plan.keep_float, plan.num_evaluations) == (True, (), 2)
    assert plan.top1 == plan.int8_top1


def test_a_gate_that_no_mixture_meets_is_told(tmp_path: Path) -> None:
    """Scales that are ruins: whatever layer is in INT8 loses everything."""
    path, scales, ranked_on, gated_on = prepared(tmp_path, 1.0)
    ruins = replace(scales, tensors={name: 1e-4 * value for name, value in scales.tensors.items()})
    plan = plan_mixed(path, ruins, ranked_on, gated_on, 0.5, OFF)
    assert not plan.met
    assert plan.keep_float == tuple(sorted(LAYERS))
    assert plan.top1 == plan.fp32_top1 == 1.0
    assert format_plan(plan).startswith("GATE: no mixture")


def test_times_are_of_the_kernels_and_in_the_record(tmp_path: Path) -> None:
    path, scales, ranked_on, gated_on = prepared(tmp_path, 300.0)
    quick = LatencyConfig(threads=1, seconds=0.01)
    plan = plan_mixed(path, scales, ranked_on[:1], gated_on[:1], 20.0, quick)
    assert plan.met
    assert FRAGILE in plan.keep_float
    assert plan.latency_ms is not None
    assert plan.latency_ms > 0
    assert all(r.float_ms is not None and r.int8_ms is not None and r.float_ms > 0 for r in plan.order)
    slower = {
        r.node
        for r in plan.order
        if r.int8_ms is not None and r.float_ms is not None and r.int8_ms >= r.float_ms
    }
    assert set(plan.no_gain) == slower
    assert "p50 at batch 1 here" in format_plan(plan)


def test_score_weighs_noise_against_the_time_gained() -> None:
    quiet = LayerRank("n", "l", snr_db=30, cross_entropy=0, top1_drop=0, float_ms=1.0, int8_ms=0.5)
    assert quiet.noise == pytest.approx(0.001)
    assert quiet.score == pytest.approx(0.002)
    # Where INT8 brings nothing, going back costs nothing: the clock's resolution stands for it.
    assert replace(quiet, int8_ms=1.2).score == pytest.approx(0.001 / 0.05)
    assert replace(quiet, float_ms=None).score == quiet.noise


def test_figures() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert snr_db(reference + np.array([[0.5, 0.0], [0.0, 0.0]]), reference) == pytest.approx(20)
    assert snr_db(reference, reference) == math.inf
    assert cross_entropy(np.log(np.array([[0.25, 0.75]])), np.array([0])) == pytest.approx(math.log(4))
    assert cross_entropy(np.array([[1e4, 0.0]]), np.array([1])) == pytest.approx(1e4)


def test_no_images_are_a_mistake(tmp_path: Path) -> None:
    path, scales, ranked_on, _ = prepared(tmp_path, 1.0)
    with pytest.raises(LabError, match="0 images"):
        layer_costs(path, scales, [], threads=1)
    with pytest.raises(LabError, match="0 images"):
        plan_mixed(path, scales, ranked_on, [], 1.0, OFF)
