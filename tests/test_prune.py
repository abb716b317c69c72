"""Structured pruning: which channels go, what is left, and that it can be built again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deploy.layers as deploy_layers
from configs.compress import PruneConfig
from configs.load import load
from configs.schema import TrainConfig
from deploy.__main__ import main as deploy
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.layers import LayerTable, time_layers
from optimize.layer_latency import EMPTY, export_layers, grid, layer_key, table_cost
from optimize.prune import prune
from optimize.stage import count_macs, save_changed
from optimize.widths import channel_groups, macs, parameters
from tests.processes import python
from train.checkpoint import NAME, Checkpoint, Progress, load_checkpoint, restore_model
from train.model import build_model, count_parameters
from train.structure import apply_change, build_network, channels_of

SIZE = 32
HALF = PruneConfig(
    importance="l1",
    by="macs",
    keep=0.5,
    scope="global",
    round_to=8,
    max_cut=0.9,
    num_images=4,
    latency_table=None,
    rounds=1,
    finetune=None,
)


def config(name: str) -> TrainConfig:
    return load("train", TrainConfig, [f"model={name}", "data=synthetic"])


def network(name: str = "resnet18") -> nn.Module:
    torch.manual_seed(0)
    return build_model(config(name).model, 3).eval()


def images() -> list[tuple[torch.Tensor, torch.Tensor]]:
    draws = torch.Generator().manual_seed(1)
    return [(torch.rand(4, 3, SIZE, SIZE, generator=draws), torch.tensor([0, 1, 2, 0]))]


def weigh(model: nn.Module, by: Any = macs) -> float:
    groups = channel_groups(model, SIZE)
    return groups.cost(by, groups.widths)


@pytest.mark.parametrize(
    ("name", "scope", "importance"),
    [
        ("resnet18", "uniform", "l1"),
        ("resnet18", "global", "taylor"),
        ("resnet18", "global", "random"),
        ("resnet50", "global", "l2"),
        ("mobilenet_v2", "global", "bn_scale"),
        ("mobilenet_v2", "uniform", "l2"),
    ],
)
def test_what_is_left_is_a_network_of_the_size_that_was_asked_for(
    name: str, scope: Any, importance: Any
) -> None:
    model = network(name)
    before = weigh(model)
    record = prune(model, SIZE, replace(HALF, scope=scope, importance=importance), images(), 0)
    assert record.before == before
    assert record.after == weigh(model)
    assert 0.42 < record.after / before <= 0.5
    assert all(width % 8 == 0 for width in record.widths_after.values())
    assert model(images()[0][0]).shape == (4, 3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_costs_are_those_of_the_network() -> None:
    for name in ("resnet18", "mobilenet_v2"):
        model = network(name)
        assert weigh(model, parameters) == count_parameters(model)
        assert weigh(model) == count_macs(model, SIZE)


def test_a_residual_stage_is_one_group() -> None:
    groups = channel_groups(network(), SIZE)
    tied = {layer.name for layer in groups.layers if layer.out_group == "conv1"}
    assert tied == {"conv1", "layer1.0.conv2", "layer1.1.conv2"}


def test_channels_that_do_nothing_are_no_loss() -> None:
    model = network().eval()
    with torch.no_grad():
        for tensor in ("layer3.0.bn1.weight", "layer3.0.bn1.bias"):
            model.get_parameter(tensor)[:128] = 0.0
    (batch, _), *_ = images()
    expected = model(batch)
    channel_groups(model, SIZE).cut({"layer3.0.conv1": range(128)})
    assert torch.allclose(model(batch), expected, atol=1e-5)


def test_a_uniform_cut_is_the_same_share_everywhere() -> None:
    record = prune(network(), SIZE, replace(HALF, scope="uniform"), [], 0)
    shares = {record.widths_after[name] / width for name, width in record.widths_before.items()}
    assert max(shares) - min(shares) < 8 / 64


@pytest.mark.parametrize("importance", ["l1", "taylor"])
def test_no_cut_is_left_that_the_budget_does_not_ask_for(importance: Any) -> None:
    model = network()
    budget = 0.37 * weigh(model)
    whole = channel_groups(model, SIZE).widths
    prune(model, SIZE, replace(HALF, importance=importance, keep=0.37, round_to=16), images(), 0)
    left = channel_groups(model, SIZE)
    assert left.cost(macs, left.widths) <= budget
    for name, width in left.widths.items():
        if width < whole[name]:
            assert left.cost(macs, {**left.widths, name: width + 16}) > budget


@pytest.mark.parametrize(("keep", "words"), [(0.001, "at least 0.0"), (0.3, "max_cut 0.2")])
def test_a_constraint_that_cannot_be_met_leaves_the_network_alone(keep: float, words: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LabError, match=words):
        prune(model, SIZE, replace(HALF, keep=keep, max_cut=0.9 if keep < 0.1 else 0.2), [], 0)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def timed(model: nn.Module, size: int = SIZE) -> LayerTable:
    """A clock of our own: a layer takes as long as it has outputs, in the last stage a hundred times that."""
    times = {(4, 4): 1.0, (2, 2): 1.0, (1, 1): 100.0}
    return LayerTable("ours", "1", 1, 1.0, {}, "", {
        layer_key(layer, inputs, outputs): times.get(layer.out_size, 1.0) * outputs
        for layer in channel_groups(model, size).layers
        for inputs, outputs in grid(layer)
    })  # fmt: skip


BY_LATENCY = replace(HALF, by="latency", importance="random", keep=0.6)


def test_measured_layers_steer() -> None:
    model = network()
    layers = {layer.name: layer for layer in channel_groups(model, SIZE).layers}
    cost = table_cost(timed(model), "t.json")
    assert cost(layers["layer4.0.conv2"], 512, 300) == pytest.approx(30_000)
    assert cost(layers["fc.1"], 77, 3) == pytest.approx(300)
    record = prune(model, SIZE, BY_LATENCY, [], 0, timed(model))
    assert record.after <= 0.6 * record.before
    cut = {name for name, width in record.widths_before.items() if record.widths_after[name] < width}
    assert {name.split(".")[0] for name in cut} == {"layer4"}


def test_times_are_linear_between_those_of_the_table() -> None:
    layer = next(x for x in channel_groups(network(), SIZE).layers if x.name == "layer2.0.conv2")
    times = {(i, o): float(i * o) for i in (32, 64) for o in (32, 64, 128)} | {(96, 128): 7.0}
    table = replace(timed(network()), latency_ms={layer_key(layer, *at): ms for at, ms in times.items()})
    cost = table_cost(table, "t.json")
    assert cost(layer, 64, 128) == 64 * 128
    assert cost(layer, 48, 100) == pytest.approx(48 * 100)  # bilinear
    assert cost(layer, 80, 128) == pytest.approx((64 * 128 + 7) / 2)
    for inputs, outputs in ((80, 100), (128, 128), (16, 64), (64, 16)):  # a neighbour is missing
        with pytest.raises(LabError, match=rf"t\.json has no times around layer2.0.conv2 with {inputs} "):
            cost(layer, inputs, outputs)


def test_the_call_itself_is_no_layers_time() -> None:
    layer = next(x for x in channel_groups(network(), SIZE).layers if x.name == "layer2.0.conv2")
    times = {layer_key(layer, 128, 64): 3.0, layer_key(layer, 128, 128): 5.0, EMPTY: 2.0}
    cost = table_cost(replace(timed(network()), latency_ms=times), "t.json")
    assert cost(layer, 128, 96) == pytest.approx(2.0)


def test_the_least_of_several_turns_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is slow while the first turn runs, and from the third on."""
    (stem, *_) = channel_groups(network(), SIZE).layers
    count = export_layers([stem], tmp_path / "layers")
    calls = 0

    def measure(call: Callable[[], object], **_: float) -> list[float]:
        nonlocal calls
        turn, layer = divmod(calls, count)
        calls += 1
        return [(1.0 if turn == 1 else 2.0) * (1 + layer)]

    monkeypatch.setattr(deploy_layers, "measure_latency", measure)
    table = time_layers(tmp_path / "layers", 1, 0.01)
    assert sorted(table.latency_ms.values()) == list(range(1, 1 + count))


def test_a_table_of_another_network_is_refused() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    for table in (timed(network("mobilenet_v2")), timed(model, 64)):
        with pytest.raises(LabError, match=r"has no layer such as conv1 .*of another network or of another"):
            prune(model, SIZE, BY_LATENCY, [], 0, table)
    named = replace(timed(model), latency_ms={"conv1": 1.0})
    with pytest.raises(LabError, match="'conv1': the name must end with two widths"):
        prune(model, SIZE, BY_LATENCY, [], 0, named)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_layers_are_timed_as_files(tmp_path: Path) -> None:
    """By the command that a device has; a table that it wrote prunes."""
    groups = channel_groups(network("mobilenet_v2"), SIZE)
    some = [*groups.layers[:2], groups.layers[-1]]
    count = export_layers(some, tmp_path / "layers")
    files = list((tmp_path / "layers").glob("*.onnx"))
    # The stem keeps 3 inputs; a depthwise layer; the head its classes; and what does nothing.
    assert len(files) == count == 5 + 5 + 5 + 1
    assert max(file.stat().st_size for file in files) < 1000
    out = tmp_path / "latency.json"
    assert deploy(["layers", str(tmp_path / "layers"), "--out", str(out), "--seconds", "0.001"]) == 0
    table = LayerTable.read(out)
    assert table.latency_ms.keys() == {file.stem for file in files}
    # How long it took is the machine's business: on a busy one a small layer is no slower than nothing.
    cost = table_cost(table, "t")
    for layer in some:
        whole = table.latency_ms[layer_key(layer, layer.inputs, layer.outputs)]
        assert cost(layer, layer.inputs, layer.outputs) == max(0.0, whole - table.latency_ms[EMPTY])
    assert deploy(["layers", str(tmp_path), "--out", str(out)]) == 2
    with pytest.raises(LabError, match="is there and not empty"):
        export_layers(some, tmp_path / "layers")


@pytest.mark.parametrize("text", ["{}", "[]", "x", '{"schema": 2}', '{"schema": 1, "threads": 1}'])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(LabError, match=r"t\.json.*measure"):
        LayerTable.read(tmp_path / "t.json")
    replace(timed(network("mobilenet_v2")), latency_ms={"a-1-1": -1.0}).write(tmp_path / "t.json")
    with pytest.raises(LabError, match=r"a-1-1 takes -1\.0 ms"):
        LayerTable.read(tmp_path / "t.json")


def saved(model: nn.Module, name: str, folder: Path) -> Path:
    source = Checkpoint(
        config=config(name),
        input_spec=InputSpec(SIZE, SIZE, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c")),
        structure=[], scaler={}, loader={"position": 0, "num_steps": 0}, progress=Progress(), metrics={},
        model={}, ema=None, optimizer={},
    )  # fmt: skip
    save_changed(folder, source, model, [channels_of(model)])
    return folder / NAME


def test_a_fresh_process_builds_it_again(tmp_path: Path) -> None:
    names = ("resnet18", "resnet50", "mobilenet_v2")
    networks = {name: network(name) for name in names}
    for name, model in networks.items():
        prune(model, SIZE, HALF, [], 0)
        saved(model, name, tmp_path / name)
    (batch, _), *_ = images()
    torch.save(batch, tmp_path / "batch.pt")
    code = (
        "import sys, torch; from pathlib import Path; from train.checkpoint import *; "
        "folder = Path(sys.argv[1]); batch = torch.load(folder / 'batch.pt'); "
        "load = lambda name: restore_model(load_checkpoint(folder / name / NAME)); "
        "torch.save([load(name)(batch).detach() for name in sys.argv[2:]], folder / 'out.pt')"
    )
    done = python("-c", code, str(tmp_path), *names)
    assert done.returncode == 0, done.stderr
    for model, out in zip(networks.values(), torch.load(tmp_path / "out.pt"), strict=True):
        assert torch.equal(out, model.eval()(batch))


def test_a_value_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("conv1.weight")[0] = float("nan")
    with pytest.raises(LabError, match=r"not finite .* such as conv1.weight"):
        saved(model, "resnet18", tmp_path)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"change": "holes"}, "a change 'holes'.*use the edgelab that wrote it"),
        ({"change": "channels", "layers": {"layer9.conv1": [8, 8]}}, "does not fit its network"),
        ({"change": "channels", "layers": {"relu": [8, 8]}}, "a ReLU has no channels"),
    ],
)
def test_a_change_of_another_network_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(LabError, match=words):
        apply_change(network(), change)


def test_a_new_head_keeps_its_classes() -> None:
    model = network()
    prune(model, SIZE, HALF, [], 0)
    wider = build_network(config("resnet18").model, 7, [channels_of(model)])
    assert wider(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, 7)


def test_restored_weights_are_those_saved(tmp_path: Path) -> None:
    model = network()
    prune(model, SIZE, HALF, [], 0)
    restored = restore_model(load_checkpoint(saved(model, "resnet18", tmp_path))).state_dict()
    assert all(torch.equal(value, restored[key]) for key, value in model.state_dict().items())
