"""torchvision's networks with our stem and head."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torchvision
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck

from configs.schema import ModelConfig
from deploy.errors import LabError

_RESNETS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
    "resnet101": torchvision.models.resnet101,
}
_MODELS: dict[str, Callable[..., nn.Module]] = {**_RESNETS, "mobilenet_v2": torchvision.models.mobilenet_v2}


def build_model(config: ModelConfig, num_classes: int, *, load_pretrained: bool = False) -> nn.Module:
    """float32 [n, 3, size, size] -> logits float32 [n, num_classes].

    `load_pretrained` is apart from the config because a checkpoint brings its own weights. Raises LabError
    where the pretrained weights cannot be had.
    """
    model = _MODELS[config.name](num_classes=num_classes)
    if config.name in _RESNETS:
        in_features = cast(nn.Linear, model.fc).in_features
        model.fc = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(in_features, num_classes))
        if config.stem == "small":
            # He et al. 2015, section 4.2: a 3 x 3 stem without strides for 32 x 32 images.
            model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            model.maxpool = nn.Identity()
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    else:
        cast(nn.Dropout, cast(nn.Sequential, model.classifier)[0]).p = config.dropout
        if config.stem == "small":
            first = cast(nn.Conv2d, cast(nn.Sequential, cast(nn.Sequential, model.features)[0])[0])
            first.stride = (1, 1)
    if load_pretrained and config.pretrained:
        _load_imagenet_weights(model, config.name, num_classes)
    return model


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
    return sum(parameter.numel() for parameter in model.parameters())


def _load_imagenet_weights(model: nn.Module, name: str, num_classes: int) -> None:
    try:
        state = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(check_hash=True)
    except Exception as error:
        raise LabError(
            f"the ImageNet weights of {name} could not be downloaded ({error}): "
            "check the network, or use model.pretrained=false"
        ) from error
    # Our head has a dropout before the linear layer, so that layer's name differs from torchvision's.
    state = {key.replace("fc.", "fc.1.", 1) if key.startswith("fc.") else key: v for key, v in state.items()}
    if num_classes != 1000:
        state = {key: v for key, v in state.items() if not key.startswith(("fc.", "classifier."))}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any(not key.startswith(("fc.", "classifier.")) for key in missing):
        raise LabError(f"{name}: pretrained weights do not fit: missing {missing}, unexpected {unexpected}")
