"""Masks: what goes and stays away, in training, in a checkpoint and in the ONNX file."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

from configs.schema import AdamWConfig, OptimConfig, SgdConfig
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from optimize.export import export_onnx
from optimize.sparsify import (
    choose_masks,
    cubic_schedule,
    is_two_four,
    require_reachable,
    sparsity_record,
)
from optimize.stage import save_changed
from tests.rounds import trained, weight
from train.checkpoint import Checkpoint, load_checkpoint, restore_model
from train.ema import Ema
from train.masks import mask_of, masked_layers, set_masks, weight_parameter
from train.optim import add_l1, build_optimizer
from train.structure import build_network, plain, with_masks
from train.weights import starting_structure, starting_weights

SPEC = InputSpec(size=8, resize=8, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), class_names=("a", "b", "c"))


def small() -> nn.Sequential:
    """A stem of 3 channels, a depthwise, a pointwise and a plain convolution, a head; all of one scale."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.Conv2d(12, 6, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.3)
    nn.init.uniform_(cast(nn.BatchNorm2d, model[1]).weight, -1.5, 1.5)
    return model


def masked(sparsity: float, pattern: str = "unstructured", scope: str = "global") -> nn.Sequential:
    model = small()
    set_masks(model, choose_masks(model, sparsity, pattern, scope, []))
    return model


@pytest.fixture(scope="module", name="trained")
def _trained() -> Checkpoint:
    return trained()


def test_exactly_the_smallest_go() -> None:
    model = small()
    layers = {"0": 216, "3": 72, "4": 96, "5": 648, "8": 18}
    together = choose_masks(model, 0.77, "unstructured", "global", [])
    assert {name: mask.numel() for name, mask in together.items()} == layers
    assert sum(int((~mask).sum()) for mask in together.values()) == round(0.77 * 1050)
    kept = torch.cat([weight(model, name)[mask] for name, mask in together.items()]).abs()
    gone = torch.cat([weight(model, name)[~mask] for name, mask in together.items()]).abs()
    assert kept.min() > gone.max()
    each = choose_masks(model, 0.77, "unstructured", "uniform", [])
    assert {n: int((~m).sum()) for n, m in each.items()} == {n: round(0.77 * k) for n, k in layers.items()}
    assert all(weight(model, n)[m].abs().min() > weight(model, n)[~m].abs().max() for n, m in each.items())


def test_of_equal_weights_the_first_go() -> None:
    model = nn.Sequential(nn.Conv2d(4, 1, 1), nn.Linear(4, 1))
    nn.init.ones_(weight_parameter(model[0]))
    mask = choose_masks(model, 0.5, "2:4", "uniform", ["head"])["0"]
    assert mask.flatten().tolist() == [False, False, True, True]


def test_a_layer_is_not_emptied() -> None:
    model = small()
    with torch.no_grad():
        weight(model, "3").mul_(1e-3)
    with pytest.raises(LabError, match=r"0\.9 with scope=global leaves no weight in 3: .*scope=uniform"):
        choose_masks(model, 0.9, "unstructured", "global", [])
    assert choose_masks(model, 0.9, "unstructured", "uniform", [])["3"].any()
    with pytest.raises(LabError, match="leaves no weight in 8"):
        choose_masks(model, 0.98, "unstructured", "uniform", [])
    assert masked_layers(model) == []


def test_layers_stay_dense_by_name_and_by_place() -> None:
    model = small()
    assert list(choose_masks(model, 0.5, "unstructured", "global", ["first", "head", "4"])) == ["3", "5"]
    with pytest.raises(LabError, match=r"\['conv9'\].*no such"):
        choose_masks(model, 0.5, "unstructured", "global", ["conv9"])
    with pytest.raises(LabError, match="no layer is left"):
        choose_masks(model, 0.5, "2:4", "global", ["4", "5"])


def test_two_of_four_along_the_input_channels() -> None:
    model = small()
    before = copy.deepcopy(model)
    masks = choose_masks(model, 0.5, "2:4", "uniform", [])
    # 3 channels, a depthwise layer, and 6 features are not in fours.
    assert list(masks) == ["4", "5"]
    for name, mask in masks.items():
        old = weight(before, name).abs()
        for k in range(old.shape[0]):
            for r in range(old.shape[2]):
                for s in range(old.shape[3]):
                    for c in range(0, old.shape[1], 4):
                        four, kept = old[k, c : c + 4, r, s], mask[k, c : c + 4, r, s]
                        assert set(four.topk(2).indices.tolist()) == set(kept.nonzero().flatten().tolist())
    set_masks(model, masks)
    record = sparsity_record(model)
    assert (record.two_four, record.dense) == (["4", "5"], ["0", "3", "8"])
    assert record.layers == {"0": 0.0, "3": 0.0, "4": 0.5, "5": 0.5, "8": 0.0}
    broken = weight(model, "5").clone()
    broken[1, 4:8, 2, 2] = 1.0
    assert not is_two_four(broken)
    assert not is_two_four(torch.zeros(8, 3, 1, 1))


@pytest.mark.parametrize("before", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_rounds_come_to_two_of_four(before: float, scope: str) -> None:
    model = masked(before) if before else small()
    present = require_reachable(model, 0.5, "2:4", scope, [])
    zeros = int((weight(model, "5") == 0).sum())
    for share in cubic_schedule(present, 0.5, 3):
        set_masks(model, choose_masks(model, share, "2:4", scope, []))
        now = int((weight(model, "5") == 0).sum())
        assert now >= zeros
        zeros = now
    assert is_two_four(weight(model, "4"))
    assert is_two_four(weight(model, "5"))
    if not before:
        assert zeros == 648 // 2


def test_what_is_gone_stays_gone_in_later_rounds() -> None:
    model = masked(0.3)
    first = {name: weight(model, name) != 0 for name in masked_layers(model)}
    with torch.no_grad():
        for name in first:  # the others have become small meanwhile
            weight_parameter(model.get_submodule(name)).mul_(1e-6)
    second = choose_masks(model, 0.6, "unstructured", "global", [])
    assert sum(int((~mask).sum()) for mask in second.values()) == round(0.6 * 1050)
    assert not any(bool((second[name] & ~first[name]).any()) for name in first)
    with pytest.raises(LabError, match=r"sparsity 0\.2: of the weights 0\.3 are zero already"):
        require_reachable(model, 0.2, "unstructured", "global", [])
    assert require_reachable(model, 0.6, "unstructured", "global", []) == pytest.approx(0.3)


def test_the_schedule() -> None:
    # Zhu and Gupta 2017, equation 1, by hand.
    assert cubic_schedule(0.0, 0.8, 2) == pytest.approx([0.7, 0.8])
    assert cubic_schedule(0.5, 0.9, 4) == pytest.approx([0.73125, 0.85, 0.89375, 0.9])
    assert cubic_schedule(0.0, 0.8, 5)[-1] == 0.8


SGD = SgdConfig(
    name="sgd", lr=0.1, weight_decay=0.1, warmup_epochs=0.0, final_lr=0.0, cycles=1, l1=0.01, momentum=0.9,
    nesterov=True,
)  # fmt: skip
ADAMW = AdamWConfig(
    name="adamw", lr=0.1, weight_decay=0.1, warmup_epochs=0.0, final_lr=0.0, cycles=1, l1=0.01,
    betas=[0.9, 0.99], eps=1e-8,
)  # fmt: skip


@pytest.mark.parametrize("config", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_masked_weights_stay_zero_in_training(config: OptimConfig) -> None:
    model = masked(0.7)
    zero = {name: weight(model, name) == 0 for name in masked_layers(model)}
    start = {name: weight(model, name).clone() for name in zero}
    average = Ema(copy.deepcopy(model), model, 0.5)
    optimizer = build_optimizer(config, model)
    generator = torch.Generator().manual_seed(1)
    for step in range(5):
        images = torch.randn(6, 3, 8, 8, generator=generator)
        F.cross_entropy(model(images), torch.tensor([0, 1, 2] * 2)).backward()
        add_l1(optimizer, config.l1)
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
    for name, gone in zero.items():
        parameter = weight_parameter(model.get_submodule(name))
        assert not parameter[gone].any()
        assert not weight(average.model, name)[gone].any()
        assert not any(
            bool(value[gone].any()) for value in optimizer.state[parameter].values() if value.ndim > 1
        )
        assert (parameter[~gone] != start[name][~gone]).all()


def test_a_checkpoint_rebuilds_the_masks(trained: Checkpoint, tmp_path: Path) -> None:
    model = restore_model(trained)
    set_masks(model, choose_masks(model, 0.6, "unstructured", "uniform", ["first"]))
    save_changed(tmp_path, trained, model, with_masks([], model))
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    again = restore_model(saved)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))
    assert torch.equal(plain(again)(images), model(images))
    assert masked_layers(again) == masked_layers(model)
    assert "features.0.0" not in masked_layers(again)
    # A second round changes the masks, not the list of changes.
    assert with_masks(saved.structure, again) == saved.structure
    assert sparsity_record(again) == sparsity_record(model)


def test_training_starts_from_masked_weights(trained: Checkpoint, tmp_path: Path) -> None:
    model = restore_model(trained)
    set_masks(model, choose_masks(model, 0.6, "unstructured", "uniform", []))
    save_changed(tmp_path, trained, model, with_masks([], model))
    config = replace(trained.config.model, weights=str(tmp_path / "checkpoint.pt"))
    new = build_network(config, 2, starting_structure(config))
    new.load_state_dict(starting_weights(config, new))  # every tensor, those of the head too
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in new.state_dict().items())
    wider = build_network(config, 5, starting_structure(config))
    found = starting_weights(config, wider)
    assert not any(name.startswith("classifier.") for name in found)
    wider.load_state_dict(found, strict=False)
    head = mask_of(wider.get_submodule("classifier.1"))
    assert head is not None
    assert head.mask.all()  # a new head has nothing masked


def test_sizes_are_those_of_bitmasks_and_values() -> None:
    model = masked(0.5, scope="uniform")
    record = sparsity_record(model)
    floats = 1050 + (8 + 8 + 12 + 6 + 3) + 4 * 8  # weights, biases, BatchNorm
    assert record.dense_bytes == 4 * floats
    masks = 27 + 9 + 12 + 81 + 3  # a bit a weight
    assert record.bitmask_bytes == 4 * (floats - 525) + masks
    assert record.sparsity == 0.5
    assert sparsity_record(small()).bitmask_bytes == record.dense_bytes


def test_zeros_are_zeros_in_the_file(tmp_path: Path) -> None:
    model = masked(0.5, "2:4").eval()
    export_onnx(model, SPEC, tmp_path / "sparse.onnx")
    weights: list[npt.NDArray[Any]] = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "sparse.onnx").graph.initializer
        if len(tensor.dims) == 4
    ]
    by_shape = {array.shape: array for array in weights}
    for name in ("4", "5"):
        array = by_shape[tuple(weight(model, name).shape)]
        assert np.array_equal(array == 0, (weight(model, name) == 0).numpy())
        fours = array.reshape(len(array), -1, 4, *array.shape[2:])
        assert ((fours != 0).sum(2) == 2).all()
    assert masked_layers(model) == ["4", "5"]  # the network is as it was
    images = torch.randn(2, 3, 8, 8)
    session = onnxruntime.InferenceSession(str(tmp_path / "sparse.onnx"))
    logits = session.run(["logits"], {"image": images.numpy()})[0]
    assert np.allclose(logits, model(images).detach().numpy(), atol=1e-5)
