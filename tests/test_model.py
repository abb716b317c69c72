"""The networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from configs.schema import ModelConfig
from deploy.errors import LabError
from train.model import build_model, count_parameters

# torchvision's own figures for 1000 classes, in millions.
PARAMETERS = {
    "resnet18": 11.690,
    "resnet34": 21.798,
    "resnet50": 25.557,
    "resnet101": 44.549,
    "mobilenet_v2": 3.505,
}


def config(name: Any, **changes: Any) -> ModelConfig:
    values = {"name": name, "stem": "imagenet", "dropout": 0.0, "pretrained": False} | changes
    return ModelConfig(**values)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_network_is_the_one_that_is_named(name: str) -> None:
    model = build_model(config(name), 1000)
    assert count_parameters(model) / 1e6 == pytest.approx(PARAMETERS[name], abs=5e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_the_small_stem_keeps_the_resolution(name: str) -> None:
    sizes: dict[str, int] = {}
    for stem in ("imagenet", "small"):
        model = build_model(config(name, stem=stem), 10).eval()
        last = model.layer4 if name != "mobilenet_v2" else model.features

        def note(module: nn.Module, inputs: Any, output: torch.Tensor, stem: str = stem) -> None:
            sizes[stem] = output.shape[-1]

        assert isinstance(last, nn.Module)
        last.register_forward_hook(note)
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sizes == ({"imagenet": 1, "small": 2} if name == "mobilenet_v2" else {"imagenet": 1, "small": 4})


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_dropout_stands_before_the_head(name: str) -> None:
    model = build_model(config(name, dropout=0.9), 10)
    drops = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert drops == [0.9]
    assert [type(module) for module in model.modules()][-2:] == [nn.Dropout, nn.Linear]


class Weights:
    """In place of torchvision's, whose download a test must not need."""

    def __init__(self, state: dict[str, torch.Tensor] | None) -> None:
        self.DEFAULT = self
        self._state = state

    def get_state_dict(self, check_hash: bool) -> dict[str, torch.Tensor]:
        if self._state is None:
            raise OSError("no route to host")
        return dict(self._state)


@pytest.mark.parametrize("num_classes", [10, 1000])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_pretrained_weights_fill_all_but_a_new_head(
    name: str, num_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = torchvision.models.get_model(name).state_dict()
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: Weights(source))
    state = build_model(config(name, pretrained=True), num_classes, load_pretrained=True).state_dict()
    differing = [
        key for key, value in state.items() if not any(torch.equal(value, v) for v in source.values())
    ]
    head = {
        "resnet18": ["fc.1.weight", "fc.1.bias"],
        "mobilenet_v2": ["classifier.1.weight", "classifier.1.bias"],
    }
    assert set(differing) <= (set(head[name]) if num_classes == 10 else set())
    assert (head[name][0] in differing) == (num_classes == 10)


def test_a_checkpoint_brings_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: Weights(None))
    assert count_parameters(build_model(config("resnet18", pretrained=True), 10)) > 0


def test_no_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: Weights(None))
    with pytest.raises(LabError, match=r"no route to host.*model\.pretrained=false"):
        build_model(config("resnet18", pretrained=True), 10, load_pretrained=True)
