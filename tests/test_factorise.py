"""Layers become thin ones that compute nearly the same for less, and stay that in every file."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from configs.compress import FactoriseConfig, LatencyConfig, PruneConfig
from deploy.errors import LabError
from optimize import factorise as module
from optimize.export import compare_onnx, export_onnx
from optimize.factorise import factor_sites, factorise, factors_of, tucker2
from optimize.layer_clock import LayerClock, layers_onnx
from optimize.prune import prune
from optimize.quantize import quantize_onnx
from optimize.stage import count_macs
from tests.compressed import SIZE, SPEC, images, logits, resnet18, restored, saved, tiny
from train.low_rank import full_ranks, thin_layers
from train.structure import apply_change, channels_of

ENERGY = FactoriseConfig(by="energy", energy=0.6, keep=0.5, round_to=8)
MACS = FactoriseConfig(by="macs", energy=0.9, keep=0.5, round_to=4)
LAYERS = [
    nn.Conv2d(12, 20, 3, stride=2, padding=1),
    nn.Conv2d(12, 8, (3, 5), padding=(1, 2), dilation=2, bias=False),
    nn.Conv2d(16, 24, 1, stride=2),
    nn.Conv2d(24, 16, 1, padding=1),
    nn.Linear(20, 12),
]


def input_of(layer: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Linear):
        return torch.randn(2, layer.in_features, generator=generator)
    assert isinstance(layer, nn.Conv2d)
    return torch.randn(2, layer.in_channels, 16, 16, generator=generator)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_at_full_rank_the_factors_are_the_layer(layer: nn.Module) -> None:
    ranks = full_ranks(layer)
    assert ranks is not None
    factors, error = factors_of(layer, ranks)
    assert error < 1e-7
    torch.testing.assert_close(factors(input_of(layer)), layer(input_of(layer)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_error_falls_as_the_rank_grows(layer: nn.Module) -> None:
    full = full_ranks(layer)
    assert full is not None
    errors = [factors_of(layer, [max(1, r * step // 4) for r in full])[1] for step in range(1, 5)]
    assert all(more < less for less, more in itertools.pairwise(errors))


def test_the_error_is_what_the_energy_promises() -> None:
    sites, _ = factor_sites(tiny(), SIZE)
    assert [site.name for site in sites] == ["0", "3", "9", "14"]
    for site in sites:
        ranks = site.ranks(0.7, 1)
        lost = sum(1 - shares[rank - 1] for shares, rank in zip(site.energies, ranks, strict=True))
        _, error = factors_of(site.layer, ranks)
        # Eckart and Young for a matrix; De Lathauwer et al. 2000, property 10, for a tensor.
        assert error**2 <= lost * (1 + 1e-6) <= 0.3 * len(ranks) * (1 + 1e-6)
        if len(ranks) == 1:
            assert error**2 == pytest.approx(lost, rel=1e-5)


def test_the_iteration_improves_on_the_first_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).normal(size=(20, 16, 3, 3))

    def kept() -> float:
        return float(np.linalg.norm(tucker2(weight, 6, 5)[1]))

    improved = kept()
    monkeypatch.setattr(module, "ITERATIONS", 0)
    assert improved > kept() * 1.01


@pytest.mark.parametrize("config", [ENERGY, MACS])
def test_the_network_costs_what_the_record_says_and_keeps_what_is_thin(config: FactoriseConfig) -> None:
    model = tiny()
    record = factorise(model, SIZE, config)
    assert record.macs_before == count_macs(tiny(), SIZE)
    assert record.macs_after == count_macs(model, SIZE) < record.macs_before
    assert isinstance(model.get_submodule("6"), nn.Conv2d)
    for layer in record.layers.values():
        assert layer.used
        assert layer.macs_after < layer.macs_before
        assert all(
            rank % config.round_to == 0 or rank == most
            for rank, most in zip(layer.ranks, layer.full_ranks, strict=True)
        )


@pytest.mark.parametrize("keep", [0.4, 0.6, 0.9])
def test_the_macs_that_are_left_are_those_asked_for(keep: float) -> None:
    model = tiny()
    record = factorise(model, SIZE, FactoriseConfig(by="macs", energy=0.9, keep=keep, round_to=1))
    assert 0.95 * keep < record.macs_after / record.macs_before <= keep


def test_only_what_is_measured_faster_is_factorised() -> None:
    model = tiny()
    asked = []

    def faster(layer: nn.Module, factors: nn.Sequential, in_size: tuple[int, int]) -> tuple[float, float]:
        asked.append((layer, in_size))
        return (2.0, 1.5) if isinstance(layer, nn.Conv2d) else (1.0, 1.0)

    record = factorise(model, SIZE, ENERGY, faster)
    assert {name for name, layer in record.layers.items() if not layer.used} == {"14"}
    assert isinstance(model.get_submodule("14"), nn.Linear)
    assert isinstance(model.get_submodule("3"), nn.Sequential)
    assert record.predicted_saving_ms == pytest.approx(0.5 * (len(record.layers) - 1))
    assert record.macs_after == count_macs(model, SIZE)
    assert (16, 16) in [in_size for _, in_size in asked]


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[1], LAYERS[2], LAYERS[4]], ids=str)
def test_what_the_clock_runs_is_the_layer_and_its_factors(layer: nn.Module) -> None:
    factors, _ = factors_of(layer, [4] * len(full_ranks(layer) or []))
    given = input_of(layer)[:1]
    for layers in ([layer], list(factors)):
        proto = layers_onnx(layers, (16, 16))
        session = onnxruntime.InferenceSession(proto.SerializeToString())
        (answer,) = session.run(None, {"image": given.numpy()})
        expected = nn.Sequential(*copy.deepcopy(layers))
        if expected[-1].bias is not None:
            nn.init.zeros_(expected[-1].bias)  # type: ignore[arg-type]
        np.testing.assert_allclose(answer, expected(given).detach().numpy(), rtol=1e-3, atol=1e-5)


def test_the_clock_measures_layers_of_the_same_shapes_once() -> None:
    factors, _ = factors_of(LAYERS[0], [4, 4])
    clock = LayerClock(LatencyConfig(threads=1, seconds=0.001))
    times = clock(LAYERS[0], factors, (16, 16))
    assert min(times) > 0
    assert clock(copy.deepcopy(LAYERS[0]), factors, (16, 16)) == times


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (FactoriseConfig(by="energy", energy=1.0, keep=0.5, round_to=8), "lower factorise.energy"),
        (FactoriseConfig(by="macs", energy=0.9, keep=0.01, round_to=8), r"0\.01 of the MACs cannot be met"),
    ],
)
def test_what_gains_nothing_is_refused(config: FactoriseConfig, text: str) -> None:
    model = tiny()
    with pytest.raises(LabError, match=text):
        factorise(model, SIZE, config)
    assert torch.equal(logits(model), logits(tiny()))


def test_weights_that_are_not_finite_are_refused() -> None:
    model = tiny()
    nn.init.constant_(model.get_parameter("3.weight"), torch.nan)
    with pytest.raises(LabError, match=r"1 tensors are not finite.*3\.weight"):
        factorise(model, SIZE, ENERGY)


def test_ranks_of_another_layer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ranks \[13, 4\]"):
        thin_layers(nn.Conv2d(12, 20, 3), [13, 4])


def test_the_factors_fold_and_quantise(tmp_path: Path) -> None:
    model = tiny()
    factorise(model, SIZE, ENERGY)
    file = tmp_path / "fp32.onnx"
    export_onnx(model, SPEC, file)
    ops = [node.op_type for node in onnx.load(file).graph.node]
    convs = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert ops.count("Conv") == convs > 4
    assert "BatchNormalization" not in ops
    assert compare_onnx(model, file, [images().numpy()]).relative_error < 1e-5
    record = quantize_onnx(file, [images().numpy()], tmp_path, "percentile", 99.99)
    assert record.num_convs == record.num_int8_convs == convs


def test_a_checkpoint_rebuilds_the_factors_also_after_pruning(tmp_path: Path) -> None:
    model = resnet18()
    ranks = {
        "layer1.0.conv1": [24, 16],
        "layer4.0.downsample.0": [64],
        "layer4.1.conv2": [32, 40],
        "fc.1": [8],
    }
    factors = {"change": "factors", "layers": ranks}
    apply_change(model, factors)
    again = restored(saved(tmp_path / "factors", model, [factors]))
    assert torch.equal(logits(again), logits(model))

    macs = count_macs(model, SIZE)
    prune(model, SIZE, PruneConfig("l2", "macs", 0.5, "global", 8, 0.9, 1, None, 1, None), [], 0)
    assert count_macs(model, SIZE) <= 0.5 * macs
    again = restored(saved(tmp_path / "pruned", model, [factors, channels_of(model)]))
    assert torch.equal(logits(again), logits(model))


def test_pruning_by_batchnorm_says_that_factors_have_none() -> None:
    model = tiny()
    factorise(model, SIZE, ENERGY)
    with pytest.raises(LabError, match="no BatchNorm"):
        prune(model, SIZE, PruneConfig("bn_scale", "macs", 0.5, "global", 8, 0.9, 1, None, 1, None), [], 0)
