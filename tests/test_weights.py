"""Weights to start from: which files are read, what of them is taken, and what is refused."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from configs.schema import ModelConfig
from deploy.errors import LabError
from train.model import build_model
from train.strategy import Tensors
from train.weights import starting_weights

HEADS = {"resnet18": "fc.1.", "resnet50": "fc.1.", "mobilenet_v2": "classifier.1."}


def config(name: Any = "resnet18", **changes: Any) -> ModelConfig:
    values = {"name": name, "stem": "imagenet", "dropout": 0.0, "weights": "imagenet", "new_head": False}
    return ModelConfig(**(values | changes))


def started(config: ModelConfig, num_classes: int = 1000) -> nn.Module:
    """The network as a run starts it."""
    model = build_model(config, num_classes)
    model.load_state_dict(starting_weights(config, model), strict=False)
    return model.eval()


def theirs(name: str = "resnet18", num_classes: int = 1000) -> nn.Module:
    """torchvision's network, with weights and statistics that no new one has."""
    return unsettled(torchvision.models.get_model(name, num_classes=num_classes))


def unsettled(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def assert_same_function(one: nn.Module, other: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(one(images), other(images))


class Downloaded:
    """In place of torchvision's, whose download a test must not need."""

    def __init__(self, state: Tensors | None) -> None:
        self.DEFAULT = self
        self._state = state

    def get_state_dict(self, check_hash: bool) -> Tensors:
        if self._state is None:
            raise OSError("no route to host")
        return dict(self._state)


@pytest.mark.parametrize("num_classes", [10, 1000])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_imagenets_weights_fill_all_but_a_new_head(
    name: str, num_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = theirs(name).state_dict()
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: Downloaded(source))
    model = build_model(config(name), num_classes)
    new = model.state_dict().keys() - starting_weights(config(name), model).keys()
    head = {HEADS[name] + "weight", HEADS[name] + "bias"}
    assert new == (head if num_classes == 10 else set())


def test_no_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: Downloaded(None))
    with pytest.raises(LabError, match=r"no route to host.*model\.weights=null"):
        started(config())


@pytest.mark.parametrize(
    ("name", "timms"),
    [("resnet18", "resnet18"), ("resnet50", "resnet50"), ("mobilenet_v2", "mobilenetv2_100")],
)
def test_timms_networks_keep_their_function(name: str, timms: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="its networks are compared with ours where it is installed")
    net = unsettled(timm.create_model(timms, pretrained=False))
    path = saved(tmp_path / "timm.pth", net.state_dict())
    assert_same_function(started(config(name, weights=path)), net)


def deeplearningexamples(state: Tensors) -> Tensors:
    """NVIDIA/DeepLearningExamples holds layer1 to layer4 in one Sequential, and DDP is around it."""
    names = {f"layer{n + 1}": f"layers.{n}" for n in range(4)}
    parts = {key: key.partition(".") for key in state}
    return {f"module.{names.get(first, first)}.{rest}": state[key] for key, (first, _, rest) in parts.items()}


@pytest.mark.parametrize("form", ["plain", "wrapped", "average", "compiled", "legacy", "safetensors", "ngc"])
def test_every_form_of_a_file_gives_the_same_network(form: str, tmp_path: Path) -> None:
    net = theirs()
    state, other = net.state_dict(), theirs().state_dict()
    path = tmp_path / "weights.pth.tar"
    prefixed = {f"module.{key}": value for key, value in state.items()}
    if form == "safetensors":
        path = tmp_path / "weights.safetensors"
        pytest.importorskip("safetensors.torch").save_file(state, path)
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        forms: dict[str, Any] = {
            "plain": state,
            "wrapped": {"epoch": 3, "state_dict": state, "optimizer": {"state": {}}},
            # As torchvision's and timm's scripts write it.
            "average": {
                "model": other,
                "model_ema": {"n_averaged": torch.tensor(7), **prefixed},
                "args": argparse.Namespace(lr=0.1),
            },
            "compiled": {f"_orig_mod.module.{key}": value for key, value in state.items()},
            "ngc": {"epoch": 90, "best_prec1": 77.0, "state_dict": deeplearningexamples(state)},
        }
        torch.save(forms[form], path)
    assert_same_function(started(config(weights=str(path))), net)


def test_the_head_is_new_where_it_must_be_or_shall_be(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", theirs(num_classes=7).state_dict())
    taken = {
        (num_classes, new_head): "fc.1.weight"
        in starting_weights(config(weights=path, new_head=new_head), build_model(config(), num_classes))
        for num_classes in (7, 8)
        for new_head in (False, True)
    }
    assert taken == {(7, False): True, (7, True): False, (8, False): False, (8, True): False}


def test_what_does_not_match_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = theirs().state_dict()
    del state["layer2.0.bn1.bias"]
    state["extra.weight"] = torch.zeros(3)
    wanted = config(weights=saved(tmp_path / "w.pt", state), stem="small")
    with caplog.at_level(logging.INFO, logger="edgelab"):
        found = starting_weights(wanted, build_model(wanted, 10))
    assert len(found) == 122 - 2 - 2
    assert "1 tensors it lacks, so that they stay new: layer2.0.bn1.bias" in caplog.text
    assert "1 tensors of it that have no place here: extra.weight" in caplog.text
    assert "conv1.weight (64, 3, 7, 7) for (64, 3, 3, 3)" in caplog.text
    assert "the head is new: 1000 classes there, 10 here" in caplog.text


@pytest.mark.parametrize(
    ("file", "model", "closest"),
    [
        ("resnet50", "resnet18", "model=resnet50"),
        ("resnet18", "mobilenet_v2", "model=resnet18"),
        ("mobilenet_v2", "resnet18", "model=mobilenet_v2"),
        # More than half of a deeper network's names, with the right shapes.
        ("resnet18", "resnet34", "model=resnet18"),
        ("resnet34", "resnet18", "model=resnet34"),
        ("squeezenet1_1", "resnet18", "no network here is like it"),
    ],
)
def test_the_weights_of_another_network_are_refused(
    file: str, model: str, closest: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "w.pt", torchvision.models.get_model(file).state_dict())
    with pytest.raises(LabError, match=f"of another network.*{closest}$"):
        started(config(model, weights=path), 10)


class Bomb:
    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._target,)


def test_a_hostile_file_runs_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"state_dict": Bomb(tmp_path / "exploded")})
    with pytest.raises(LabError, match="which could run code"):
        started(config(weights=path))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pt", None, "no such file"),
        ("w.pt", b"not a pickle", "truncated"),
        ("w.safetensors", b"no header", "cannot be read|needs safetensors"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LabError, match=message):
        started(config(weights=str(tmp_path / name)))


def test_a_file_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no weights by name"):
        started(config(weights=saved(tmp_path / "w.pt", {"epoch": 3})))


def test_safetensors_is_asked_for_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.safetensors").touch()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(LabError, match="pip install safetensors"):
        started(config(weights=str(tmp_path / "w.safetensors")))
