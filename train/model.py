"""torchvision's networks, and small ones of its blocks, with our stem and head, and their parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torchvision
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from configs.schema import ModelConfig
from train.codebooks import codebooks


class SmallResNet(ResNet):  # type: ignore[misc]  # torchvision has no types
    """He et al. 2015, section 4.2: three stages of 16, 32 and 64 channels; ResNet-20 has 0.27 M parameters.

    `blocks` of each stage: depth 6 blocks + 2. torchvision's blocks, with its 1 x 1 convolution in the
    shortcut where the resolution halves (option B).
    """

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes)
        self.inplanes = 16
        self.conv1 = nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._make_layer(BasicBlock, 16, blocks)
        self.layer2 = self._make_layer(BasicBlock, 32, blocks, stride=2)
        self.layer3 = self._make_layer(BasicBlock, 64, blocks, stride=2)
        self.layer4 = nn.Identity()
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


_RESNETS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(SmallResNet, 1),
    "resnet20": partial(SmallResNet, 3),
    "resnet18": torchvision.models.resnet18,
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
    "resnet101": torchvision.models.resnet101,
}
_MODELS: dict[str, Callable[..., nn.Module]] = {**_RESNETS, "mobilenet_v2": torchvision.models.mobilenet_v2}
_FEATURES = ((0, 1), (2, 3), (4, 6), (7, 13), (14, 18))
"""Of MobileNetV2, by resolution."""


def build_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """float32 [n, 3, size, size] -> logits float32 [n, num_classes]. The weights are random: those that the
    config names are `train.weights`'s, and a checkpoint brings its own."""
    model = _MODELS[config.name](num_classes=num_classes)
    if config.name in _RESNETS:
        in_features = cast(nn.Linear, model.fc).in_features
        model.fc = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(in_features, num_classes))
        if config.stem == "small":
            # He et al. 2015, section 4.2: a 3 x 3 stem without strides for 32 x 32 images.
            channels = cast(nn.Conv2d, model.conv1).out_channels
            model.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
            model.maxpool = nn.Identity()
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    else:
        cast(nn.Dropout, cast(nn.Sequential, model.classifier)[0]).p = config.dropout
        if config.stem == "small":
            first = cast(nn.Conv2d, cast(nn.Sequential, cast(nn.Sequential, model.features)[0])[0])
            first.stride = (1, 1)
    return model


def stages(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The parts that hold parameters, from the stem to the head, cut where the resolution halves."""
    parts = dict(model.named_children())
    if "fc" in parts:
        layers = {
            name: [part]
            for name, part in parts.items()
            if name.startswith("layer") and not isinstance(part, nn.Identity)
        }
        return {"stem": [parts["conv1"], parts["bn1"]], **layers, "head": [parts["fc"]]}
    features = list(cast(nn.Sequential, parts["features"]))
    groups = {f"features.{first}-{last}": features[first : last + 1] for first, last in _FEATURES}
    return {**groups, "head": [parts["classifier"]]}


def residual_blocks(model: nn.Module) -> list[nn.Module]:
    """In the order of the network."""
    kinds = (BasicBlock, Bottleneck, InvertedResidual)
    return [module for module in model.modules() if isinstance(module, kinds)]


def in_sequence(model: nn.Module) -> list[nn.Module]:
    """Modules of the network, one after the other the same function as its forward."""
    parts = dict(model.named_children())
    if "fc" not in parts:
        pool = nn.AdaptiveAvgPool2d(1)
        return [
            *cast(nn.Sequential, parts["features"]),
            nn.Sequential(pool, nn.Flatten(), parts["classifier"]),
        ]
    stem = nn.Sequential(*(parts[name] for name in ("conv1", "bn1", "relu", "maxpool")))
    head = nn.Sequential(parts["avgpool"], nn.Flatten(), parts["fc"])
    return [stem, *residual_blocks(model), head]


def count_parameters(model: nn.Module) -> int:
    """Those that the network computes with: weights that share values count one by one."""
    shared = sum(indices.numel() - codebook.numel() for codebook, indices in codebooks(model).values())
    return shared + sum(parameter.numel() for parameter in model.parameters())
