"""RandAugment's operations by torchvision, as its own RandAugment calls them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torchvision.transforms.v2.functional as tv

from data.augment import OPS

Operation = Callable[[torch.Tensor, float], torch.Tensor]


def apply_op(image: torch.Tensor, op: int, parameter: float) -> torch.Tensor:
    """The operation at this place of OPS, on a uint8 image [3, h, w]; see `data.augment.random_ops`."""
    return _OPERATIONS[OPS[op]](image, parameter)


def _shear(image: torch.Tensor, x: float, y: float) -> torch.Tensor:
    degrees = [math.degrees(math.atan(value)) for value in (x, y)]
    sheared: torch.Tensor = tv.affine(image, 0.0, [0, 0], 1.0, degrees, center=[0, 0])
    return sheared


def _translate(image: torch.Tensor, x: float, y: float) -> torch.Tensor:
    moved: torch.Tensor = tv.affine(image, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0])
    return moved


_OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, _: image,
    "shear_x": lambda image, factor: _shear(image, factor, 0.0),
    "shear_y": lambda image, factor: _shear(image, 0.0, factor),
    "translate_x": lambda image, pixels: _translate(image, pixels, 0),
    "translate_y": lambda image, pixels: _translate(image, 0, pixels),
    "rotate": lambda image, degrees: tv.rotate(image, degrees),
    "brightness": lambda image, change: tv.adjust_brightness(image, 1 + change),
    "color": lambda image, change: tv.adjust_saturation(image, 1 + change),
    "contrast": lambda image, change: tv.adjust_contrast(image, 1 + change),
    "sharpness": lambda image, change: tv.adjust_sharpness(image, 1 + change),
    "posterize": lambda image, bits: tv.posterize(image, int(bits)),
    "solarize": lambda image, level: tv.solarize(image, level),
    "autocontrast": lambda image, _: tv.autocontrast(image),
    "equalize": lambda image, _: tv.equalize(image),
}
