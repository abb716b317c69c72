"""The networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from configs.schema import ModelConfig
from train.model import build_model, count_parameters, stages

# torchvision's own figures for 1000 classes, in millions; ResNet-20 has 0.27 for 10
# (He et al. 2015, table 6).
PARAMETERS = {
    "resnet8": 0.144,
    "resnet20": 0.339,
    "resnet18": 11.690,
    "resnet34": 21.798,
    "resnet50": 25.557,
    "resnet101": 44.549,
    "mobilenet_v2": 3.505,
}


def config(name: Any, **changes: Any) -> ModelConfig:
    values = {"name": name, "stem": "imagenet", "dropout": 0.0, "weights": None, "new_head": False} | changes
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


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_is_in_one_stage(name: str) -> None:
    model = build_model(config(name), 10)
    parts = stages(model)
    found = [p for modules in parts.values() for module in modules for p in module.parameters()]
    assert sorted(map(id, found)) == sorted(map(id, model.parameters()))
    assert list(parts)[-1] == "head"
    assert len(parts) == (5 if name in ("resnet8", "resnet20") else 6)
