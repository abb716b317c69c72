"""Fake quantisers stand where the INT8 file rounds, compute what it does, and train like any network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from configs.compress import OptimizeConfig
from configs.load import load
from configs.quantize import CalibrationConfig
from configs.schema import TrainConfig
from deploy.errors import LabError
from optimize.calibrate import Scales
from optimize.chain import run_chain
from optimize.export import export_onnx
from optimize.qat import START, agreement_with_torch, calibrate_quantisers, fake_quant_of
from optimize.qat_scales import round_biases, trained_scales
from optimize.qdq import emit
from optimize.qdq_lint import lint
from optimize.quantize import quantize_onnx
from optimize.sparsify import choose_masks, is_two_four
from optimize.stage import StageRecord
from tests.processes import python
from tests.test_optimize_support import SPEC, batches, exported, images, network
from tests.test_saves import assert_same, train
from train.checkpoint import load_checkpoint
from train.fake_quant import FakeQuant, WeightFakeQuant, quantiser
from train.masks import set_masks, weight_parameter
from train.model import build_model, in_sequence, residual_blocks, stages
from train.structure import Change, apply_change, plain

CALIBRATION = CalibrationConfig("max", 99.99, 16, False, False, False, False)


def prepared(name: str) -> tuple[nn.Module, Change]:
    """In evaluation mode, with calibrated quantisers."""
    model = copy.deepcopy(network(name)).eval()
    change = fake_quant_of(model, 0.0, CALIBRATION)
    apply_change(model, change)
    calibrate_quantisers(model, change["activations"], batches(), CALIBRATION)
    return model, change


@pytest.mark.parametrize(("name", "tensors", "adds"), [("resnet18", 30, 8), ("resnet50", 71, 16)])
def test_every_residual_add_has_two_quantisers(name: str, tensors: int, adds: int) -> None:
    config = load("train", TrainConfig, [f"model={name}", "model.stem=small"])
    with torch.device("meta"):
        model = build_model(config.model, 10)
        change = fake_quant_of(model, 0.0, CALIBRATION)
        apply_change(model, change)
    blocks = residual_blocks(model)
    assert len(blocks) == adds
    assert len(change["activations"]) == tensors
    last = "bn2" if name == "resnet18" else "bn3"
    for number, block in enumerate(blocks):
        # The branch, and what is added to it: the downsampling's output or the block before's.
        assert hasattr(getattr(block, last), "output_quantiser")
        down = cast(nn.Sequential | None, block.downsample)
        skip = blocks[number - 1] if down is None else down[1]
        assert hasattr(skip, "output_quantiser") or number == 0
    assert sum(isinstance(module, FakeQuant) for module in model.modules()) == tensors
    weighted = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    assert sum(isinstance(module, WeightFakeQuant) for module in model.modules()) == weighted
    assert list(stages(model)) == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]


def shares_that_differ(model: nn.Module, change: Change, s8: onnx.ModelProto, scales: Scales) -> list[float]:
    """Of the integers of the first three tensors; behind them each rounding that fell otherwise grows."""
    seen: list[npt.NDArray[np.float32]] = []
    hooks = [
        quantiser(model, name, side).register_forward_hook(
            lambda m, i, o: seen.append(o.detach().numpy().copy())
        )
        for name, side in change["activations"][:3]
    ]
    model(torch.from_numpy(images(20, 4)))
    for hook in hooks:
        hook.remove()
    exposed = onnx.ModelProto()
    exposed.CopyFrom(s8)
    names = list(scales.tensors)[:3]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=f"{name}_dq") for name in names)
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs = session.run([f"{name}_dq" for name in names], {"image": images(20, 4)})
    steps = [scales.tensors[name] for name in names]
    return [float((abs(a - b) > s / 2).mean()) for a, b, s in zip(seen, theirs, steps, strict=True)]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet"])
def test_torch_and_the_int8_file_compute_the_same(name: str, tmp_path: Path) -> None:
    model, change = prepared(name)
    path = tmp_path / "fp32.onnx"
    export_onnx(model, SPEC, path)
    scales = trained_scales(model, [change], path, images(0, 2))
    assert scales is not None
    s8 = emit(onnx.load(path), scales, "s8")
    assert lint(s8) == []
    round_biases(model, s8)
    found = agreement_with_torch(model, s8, [images(20, 64)])
    assert found.num_images == 64
    # One near tie of 64 may fall to the other side: CPUs differ in the last bit of a float sum.
    assert found.top1_agreement >= 63 / 64
    assert found.snr_db > 25
    assert max(shares_that_differ(model, change, s8, scales)) < 1e-4
    # One scale elsewhere, and it shows.
    names = list(scales.tensors)
    scales.tensors[names[2]] *= 1.2
    other = emit(onnx.load(path), scales, "s8")
    assert max(shares_that_differ(model, change, other, scales)) > 0.05


@pytest.mark.parametrize("name", ["resnet18", "mobilenet"])
def test_biases_in_whole_steps_leave_the_file_as_it_was(name: str, tmp_path: Path) -> None:
    model, change = prepared(name)

    def file() -> dict[str, npt.NDArray[Any]]:
        path = tmp_path / "fp32.onnx"
        export_onnx(model, SPEC, path)
        scales = trained_scales(model, [change], path, images(0, 2))
        assert scales is not None
        s8 = emit(onnx.load(path), scales, "s8")
        round_biases(model, s8)
        return {i.name: numpy_helper.to_array(i) for i in s8.graph.initializer}

    before = copy.deepcopy(model.state_dict())
    first = file()
    rounded = copy.deepcopy(model.state_dict())
    moved = {key for key, tensor in rounded.items() if not torch.equal(tensor, before[key])}
    assert moved
    assert all(key.endswith(".bias") for key in moved)
    second = file()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert all(torch.equal(tensor, rounded[key]) for key, tensor in model.state_dict().items())


def test_scales_go_to_the_tensors_that_were_calibrated(tmp_path: Path) -> None:
    """By name as the calibration of the file has them; the weights are rounded there and not here."""
    model, change = prepared("resnet18")
    path = tmp_path / "fp32.onnx"
    export_onnx(model, SPEC, path)
    scales = trained_scales(model, [change], path, images(0, 2))
    assert scales is not None
    record = quantize_onnx(path, batches(), tmp_path / "calibrated", "max", 99.99)
    with_ours = quantize_onnx(path, batches(), tmp_path / "trained", "max", 99.99, scales=scales)
    assert (record.method, with_ours.method, with_ours.num_images) == ("max", "qat", 16)
    calibrated = onnx.load(tmp_path / "calibrated" / "int8.onnx")
    trained = onnx.load(tmp_path / "trained" / "int8.onnx")
    both = [
        {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
        for model in (calibrated, trained)
    ]
    compared = [name for name in both[0] if name.removesuffix("_scale") in scales.tensors]
    assert len(compared) == 30
    for name in compared:
        assert both[1][name] == pytest.approx(both[0][name], rel=1e-4)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    model, change = prepared("resnet18")
    path = tmp_path / "fp32.onnx"
    export_onnx(model, SPEC, path)
    other = copy.deepcopy(model)
    nn.init.normal_(weight_parameter(other.get_submodule("layer1.0.conv2")))
    with pytest.raises(LabError, match=r"layer1\.0\.bn2\.output_quantiser does not see what .*'conv2d_2'"):
        trained_scales(other, [change], path, images(0, 2))
    with pytest.raises(LabError, match=r"30 fake quantisers, its file quantises \d+ tensors"):
        trained_scales(model, [change], exported("mobilenet"), images(0, 2))
    assert trained_scales(model, [], path, images(0, 2)) is None
    model.get_submodule("layer1.0.bn2.output_quantiser").get_buffer("scale").zero_()
    with pytest.raises(LabError, match="finite and above 0"):
        trained_scales(model, [change], path, images(0, 2))


def test_plain_is_the_float_network_on_the_weights_grid() -> None:
    model, _ = prepared("mobilenet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bare = plain(model)
    assert not [name for name in bare.state_dict() if "parametrizations" in name]
    weight = dict(bare.named_parameters())["features.1.conv.0.0.weight"].detach()
    original = before["features.1.conv.0.0.parametrizations.weight.original"]
    step = original.flatten(1).abs().amax(1).view(-1, 1, 1, 1) / 127
    assert torch.allclose((weight / step).round(), weight / step, atol=1e-3)
    assert ((weight - original).abs() <= 0.501 * step).all()
    # The original is as it was, and still rounds its activations.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    image = torch.from_numpy(images(3, 2))
    assert not torch.equal(model(image), bare(image))
    assert torch.equal(model(image), copy.deepcopy(model)(image))


def test_two_of_four_weights_stay_zero_in_the_int8_file(tmp_path: Path) -> None:
    model = copy.deepcopy(network("resnet18")).eval()
    masks = choose_masks(model, 0.5, "2:4", "uniform", ["first", "head"])
    set_masks(model, masks)
    change = fake_quant_of(model, 0.0, CALIBRATION)
    apply_change(model, change)
    calibrate_quantisers(model, change["activations"], batches(), CALIBRATION)
    sum(output.square().sum() for output in model.train()(torch.from_numpy(images(0, 2)))).backward()
    torch.optim.SGD(model.parameters(), 1e-4).step()
    export_onnx(model.eval(), SPEC, tmp_path / "fp32.onnx")
    quantize_onnx(tmp_path / "fp32.onnx", batches(), tmp_path, "max", 99.99)
    s8 = onnx.load(tmp_path / "int8.onnx")
    integers = [onnx.numpy_helper.to_array(i) for i in s8.graph.initializer if i.name.endswith("weight_q")]
    sparse = [i for i in integers if i.ndim == 4 and is_two_four(torch.tensor(i))]
    assert len(sparse) == len(masks) == 19


def test_gradient_is_one_within_the_range_and_zero_beyond() -> None:
    layer = FakeQuant(0.0)
    layer.scale.fill_(0.5)
    x = torch.tensor([0.2, 0.3, -3.26, 63.6, 64.0, -64.0, -64.3], requires_grad=True)
    y = layer(x)
    assert y.tolist() == [0.0, 0.5, -3.5, 63.5, 63.5, -64.0, -64.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 1, 1, 0, 1, 0]
    weight = torch.tensor([[1.27, 0.013], [0.0, 0.0], [-2.54, 0.011]], requires_grad=True)
    rounded = WeightFakeQuant()(weight)
    assert torch.allclose(rounded, torch.tensor([[1.27, 0.01], [0.0, 0.0], [-2.54, 0.02]]))
    rounded.sum().backward()
    assert weight.grad is not None
    assert bool((weight.grad == 1).all())


def test_ranges_move_in_training_alone() -> None:
    layer = FakeQuant(0.25)
    layer.eval()(torch.tensor([12.7]))
    assert layer.scale == 1
    layer.train()(torch.tensor([-12.7, 1.0]))
    assert float(layer.scale) == pytest.approx(0.75 + 0.25 * 0.1)
    layer(torch.zeros(3))
    assert float(layer.scale) == pytest.approx(0.775)
    fixed = FakeQuant(0.0).train()
    fixed(torch.tensor([500.0]))
    assert fixed.scale == 1


def test_the_network_in_sequence_is_the_network() -> None:
    """As a pipeline cuts it."""
    model, _ = prepared("resnet18")
    image = torch.from_numpy(images(5, 2))
    assert torch.equal(nn.Sequential(*in_sequence(model))(image), model(image))


def test_calibration_needs_images_without_nan() -> None:
    model, change = prepared("mobilenet")
    with pytest.raises(LabError, match="0 images"):
        calibrate_quantisers(model, change["activations"], [], CALIBRATION)
    bad = images(0, 1)
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(LabError, match="holds NaN"):
        calibrate_quantisers(model, change["activations"], [bad], CALIBRATION)


def test_qat_is_the_last_stage() -> None:
    with pytest.raises(LabError, match="only quantize may follow qat"):
        load("optimize", OptimizeConfig, ["checkpoint=x", "stages=[qat,prune]"])


KILLER = """
import os, signal, sys
from pathlib import Path
import train.saves as saves
from configs.compress import OptimizeConfig
from configs.load import load
from optimize.calibrate import Scales
from optimize.chain import run_chain
save = saves.save_checkpoint
def save_and_die(path, checkpoint, previous):
    save(path, checkpoint, previous)
    if path.parent.name.endswith("-qat") and path.name == "checkpoint.pt" and checkpoint.progress.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
saves.save_checkpoint = save_and_die
run_chain(load("optimize", OptimizeConfig, sys.argv[1:]), print)
"""


def compress(*overrides: str) -> list[StageRecord]:
    return run_chain(load("optimize", OptimizeConfig, list(overrides)), print)


@pytest.mark.slow
def test_a_chain_killed_in_qat_ends_bit_for_bit_and_is_quantised_by_its_scales(tmp_path: Path) -> None:
    files = [f"data.root={tmp_path / 'images'}", f"data.cache_dir={tmp_path / 'cache'}"]
    train(files, tmp_path / "run", "epochs=1", "optim.warmup_epochs=0.0")
    chain = [
        f"checkpoint={tmp_path / 'run' / 'checkpoint.pt'}", "stages=[prune,finetune,qat]",
        "prune.importance=l1", "finetune.epochs=1", "qat.training.epochs=2", "calibration.num_images=8",
        "qat.momentum=0.1", "qat.num_checked=6", "latency.seconds=0",
    ]  # fmt: skip
    killed = python("-c", KILLER, *chain, f"out={tmp_path / 'killed'}")
    assert killed.returncode == -9, killed.stderr
    last = tmp_path / "killed" / "3-qat"
    assert load_checkpoint(last / "checkpoint.pt").progress.step == 4
    with pytest.raises(LabError, match="begun with other settings"):
        compress(*chain, f"out={tmp_path / 'killed'}", "qat.momentum=0.2")
    for out in ("killed", "whole"):
        records = compress(*chain, f"out={tmp_path / out}")
    assert_same(tmp_path / "whole" / "3-qat", last)
    found = records[-1].found
    assert found["agreement"]["num_images"] == 6
    assert found["agreement"]["snr_db"] > 20
    assert found["agreement"]["top1_agreement"] >= 0.995
    # The ranges moved, and the moving average has its own.
    saved, start = load_checkpoint(last / "checkpoint.pt"), load_checkpoint(last / START)
    assert saved.ema is not None
    for name in (key for key in saved.model if key.endswith("quantiser.scale")):
        assert saved.model[name] != start.model[name] or start.model[name] == 0
    with pytest.raises(LabError, match="must be the last"):
        compress(f"checkpoint={last / 'checkpoint.pt'}", "stages=[qat]")

    measured = python(
        "-m", "scripts.quantize_and_benchmark", f"checkpoint={last / 'checkpoint.pt'}",
        f"out={tmp_path / 'out'}", "bench.seconds=0.05", "bench.batches=[1]", "num_samples=2",
        "calibration.num_images=4", "gate.max_drop=100",
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    assert "convolutions in INT8, qat over 8 training images" in measured.stdout
    scales = Scales.from_json((tmp_path / "out" / "scales.json").read_text())
    assert (scales.method, scales.num_images) == ("qat", 8)
    trained = {float(v) for key, v in saved.ema.items() if key.endswith("quantiser.scale")}
    assert set(scales.tensors.values()) == trained
