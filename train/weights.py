"""The weights that a run starts from, under our names: torchvision's, or those of a file."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
import torchvision
from torch import nn

from configs.schema import ModelConfig, ModelName
from deploy.errors import LabError
from train.checkpoint import UnreadableError, read_facts
from train.model import build_model
from train.monitor import log
from train.strategy import Tensors
from train.structure import Structure

WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model")
"""Where training scripts keep a state dict; averages first, as they are what is evaluated."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DDP, torch.compile and Lightning put before each name."""
_HEADS = ("fc.", "classifier.")

# timm's MobileNetV2 has torchvision's layers under names of its own.
_TIMM_ENDS = {
    "conv_stem": "features.0.0",
    "bn1": "features.0.1",
    "conv_head": "features.18.0",
    "bn2": "features.18.1",
}
_TIMM_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
_TIMM_FIRST = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
_TIMM_OTHERS = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3"}


@dataclass(frozen=True)
class Fit:
    """What a file has of a network below the head."""

    found: Tensors
    new: list[str]
    """Ours that it lacks."""
    unused: list[str]
    """Those that we lack, by our naming."""
    misshapen: list[str]

    @property
    def share(self) -> float:
        """1 where both hold the same tensors, 0 where they have none in common."""
        both = len(self.found) + len(self.misshapen)
        return len(self.found) / max(1, both + len(self.new) + len(self.unused))


def starting_structure(config: ModelConfig) -> Structure:
    """The changes of the checkpoint that `config.weights` names; none where that is no checkpoint of ours."""
    if config.weights is None or config.weights == "imagenet":
        return []
    try:
        return read_facts(Path(config.weights)).structure
    except UnreadableError:  # a state dict, or what `read_state` will say
        return []


def starting_weights(config: ModelConfig, model: nn.Module) -> Tensors:
    """Those tensors of the network that `config.weights` has, by our names; what does not match is logged.

    The head is among them where the file has one for as many classes, and `config.new_head` does not want a
    new one. Raises LabError where the weights cannot be had, or are of another network.
    """
    assert config.weights is not None
    imagenet = config.weights == "imagenet"
    theirs = _imagenet(config.name) if imagenet else read_state(Path(config.weights))
    ours = model.state_dict()
    fit = _fit(config.name, ours, theirs)
    _require_same_network(config, fit, theirs)
    head = {name: value for name, value in ours.items() if name.startswith(_HEADS)}
    found_head = {key: value for key, value in _renamed(config.name, theirs).items() if key in head}
    why_new = _why_new_head(config, head, found_head)
    found = fit.found | (found_head if why_new is None else {})
    log.info("%s: %d of %d tensors of %s", config.weights, len(found), len(ours), config.name)
    if why_new is not None:
        log.info("the head is new: %s", why_new)
    for what, names in (
        ("it lacks, so that they stay new", fit.new),
        ("of it that have no place here", fit.unused),
        ("of another shape, so that they stay new", fit.misshapen),
    ):
        if names:
            log.warning("%s: %d tensors %s: %s", config.weights, len(names), what, ", ".join(names))
    return found


def read_state(path: Path) -> Tensors:
    """The state dict of a file, out of its wrapping and without prefixes. Runs no code that is in the file.

    Raises LabError where there is none.
    """
    if not path.is_file():
        raise LabError(
            f"model.weights={path}: no such file; give null, imagenet, or a .pt, .pth, .tar or .safetensors "
            "file"
        )
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    while isinstance(content, dict):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    named = content.items() if isinstance(content, dict) else ()
    state = {_plain(str(key)): value for key, value in named if isinstance(value, torch.Tensor)}
    if not state:
        raise LabError(
            f"model.weights={path} holds no weights by name: save the network's state_dict() there"
        )
    return state


def _imagenet(name: ModelName) -> Tensors:
    if name not in torchvision.models.list_models(torchvision.models):
        raise LabError(
            f"{name} is for small images, it has no ImageNet weights: give model.weights=null or a file"
        )
    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        state: Tensors = weights.get_state_dict(check_hash=True)
    except Exception as error:
        raise LabError(
            f"the ImageNet weights of {name} could not be downloaded ({error}): "
            "check the network, or give model.weights=null or a file"
        ) from error
    return state


def _pickled(path: Path) -> Any:
    try:
        # Scripts of timm and torchvision keep their arguments beside the weights; a Namespace runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise LabError(
            f"model.weights={path} ({path.stat().st_size:,} bytes) cannot be read: truncated, or more "
            f"than tensors, which could run code ({str(error).splitlines()[0][:160]}); save the network's "
            "state_dict() alone"
        ) from error


def _safetensors(path: Path) -> Tensors:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise LabError(
            f"model.weights={path} needs safetensors: python -m pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except Exception as error:
        raise LabError(f"model.weights={path} cannot be read ({error}): use another copy of it") from error


def _plain(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _renamed(name: ModelName, theirs: Tensors) -> Tensors:
    rename = _mobilenet_name if name == "mobilenet_v2" else _resnet_name
    return {rename(key): value for key, value in theirs.items()}


def _resnet_name(key: str) -> str:
    """torchvision's and timm's are alike; our head has a dropout before the linear layer."""
    # NVIDIA/DeepLearningExamples, image_classification/models/resnet.py, which counts from 0.
    key = re.sub(r"^layers\.(\d)\.", lambda match: f"layer{int(match[1]) + 1}.", key)
    return re.sub(r"^fc\.(?=weight$|bias$)", "fc.1.", key)


def _mobilenet_name(key: str) -> str:
    key = re.sub(r"^classifier\.(?=weight$|bias$)", "classifier.1.", key)
    block = re.fullmatch(r"blocks\.([0-6])\.(\d)\.(\w+)\.(\w+)", key)
    if block:
        stage, place, layer, tensor = int(block[1]), int(block[2]), block[3], block[4]
        names = _TIMM_OTHERS if stage else _TIMM_FIRST
        return f"features.{sum(_TIMM_BLOCKS[:stage]) + place + 1}.conv.{names.get(layer, layer)}.{tensor}"
    first, _, rest = key.partition(".")
    return f"{_TIMM_ENDS[first]}.{rest}" if first in _TIMM_ENDS else key


def _fit(name: ModelName, ours: Tensors, theirs: Tensors) -> Fit:
    ours, theirs = (
        {key: value for key, value in state.items() if not key.startswith(_HEADS)}
        for state in (ours, _renamed(name, theirs))
    )
    both = [key for key in ours if key in theirs]
    same = [key for key in both if ours[key].shape == theirs[key].shape]
    return Fit(
        found={key: theirs[key] for key in same},
        new=[key for key in ours if key not in theirs],
        unused=[key for key in theirs if key not in ours],
        misshapen=[
            f"{key} {tuple(theirs[key].shape)} for {tuple(ours[key].shape)}"
            for key in both
            if key not in same
        ],
    )


def _require_same_network(config: ModelConfig, fit: Fit, theirs: Tensors) -> None:
    if fit.share == 1:
        return
    shares = {config.name: fit.share}
    with torch.device("meta"):
        for name in get_args(ModelName):
            other = build_model(replace(config, name=name), 2).state_dict()
            shares[name] = _fit(name, other, theirs).share
    closest = max(shares, key=lambda name: shares[name])
    total = len(fit.found) + len(fit.new) + len(fit.misshapen)
    # A deeper ResNet has more than half of its names in common with a shallower one.
    if 2 * len(fit.found) >= total and shares[closest] == fit.share:
        return
    advice = f"the closest network is model={closest}"
    if not shares[closest]:
        advice = "no network here is like it"
    elif closest == config.name:
        advice = "no other network here is closer, so the file holds a part only, or one that was changed"
    raise LabError(
        f"model.weights={config.weights} is of another network: {len(fit.found)} of the {total} tensors of "
        f"model={config.name} below its head are in it; {advice}"
    )


def _why_new_head(config: ModelConfig, ours: Tensors, theirs: Tensors) -> str | None:
    """None where the head of the file is used."""
    if config.new_head:
        return "model.new_head=true"
    if ours.keys() != theirs.keys():
        return "there is none in the file"
    # The tensors that differ are those with a row for each class.
    other = next((key for key in ours if ours[key].shape != theirs[key].shape), None)
    return None if other is None else f"{len(theirs[other])} classes there, {len(ours[other])} here"
