"""Small networks, exported once a session, for the tests of `optimize`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torchvision
from torch import nn

from configs.quantize import CalibrationMethod
from deploy.input_spec import InputSpec
from optimize.calibrate import Scales, calibrate
from optimize.export import export_onnx

SIZE = 32
SPEC = InputSpec(
    size=SIZE, resize=SIZE, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), class_names=tuple("abcdefghij")
)
_FOLDER = tempfile.TemporaryDirectory(prefix="edgelab-test-")


def images(seed: int, count: int, gain: float = 1.0) -> npt.NDArray[Any]:
    """float32 count x 3 x SIZE x SIZE, normal with standard deviation `gain`."""
    noise = np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE))
    return (gain * noise).astype(np.float32)


def batches() -> Iterator[npt.NDArray[Any]]:
    """The calibration images: 16, as a generator that can be read once."""
    for seed in range(2):
        yield images(seed, 8)


@cache
def network(name: str) -> nn.Module:
    """In training mode, with BatchNorm statistics and weights that folding must not ignore."""
    torch.manual_seed(0)
    if name == "mobilenet":  # MobileNetV2 cut short: the export of all of it takes 10 s
        blocks = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
        model: nn.Module = torchvision.models.MobileNetV2(num_classes=10, inverted_residual_setting=blocks)
    else:
        model = getattr(torchvision.models, name)(num_classes=10)
    model.train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.momentum = None
            elif isinstance(module, nn.Linear):
                module.bias.normal_(0, 0.1)
        for seed in range(2):
            model(torch.from_numpy(images(seed, 8)))
    return model


@cache
def exported(name: str) -> Path:
    path = Path(_FOLDER.name) / f"{name}.onnx"
    export_onnx(network(name), SPEC, path)
    return path


@cache
def calibrated(name: str, method: CalibrationMethod = "max") -> Scales:
    return calibrate(exported(name), batches(), method, 99.99)


def load(name: str) -> onnx.ModelProto:
    return onnx.load(exported(name))
