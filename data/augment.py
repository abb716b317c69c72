"""What is drawn for each training image besides its window and flip, and the size of an epoch's images."""

from __future__ import annotations

import numpy as np

from configs.images import ErasingConfig, ProgressiveConfig, RandAugmentConfig
from data.index import Float64, Int64

OPS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color",
    "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
"""RandAugment's, in torchvision's order; a `BatchPlan` names them by their place here."""

_BINS = 31
_TRIES = 10


def training_size(progressive: ProgressiveConfig, size: int, epoch: int) -> int:
    """Side in px of the training images of an epoch: from the start size to `size` in steps of 32."""
    if epoch >= progressive.epochs:
        return size
    steps = (size - progressive.start_size) // 32
    return progressive.start_size + 32 * (steps * epoch // progressive.epochs)


def random_ops(
    rng: np.random.Generator, n: int, config: RandAugmentConfig, size: int
) -> tuple[Int64, Float64]:
    """RandAugment (Cubuk et al. 2019): for each of n images `num_ops` places in OPS, drawn alike, and their
    parameters, both [n, num_ops].

    The parameters are torchvision's at this magnitude of 31 bins: a shear factor, a translation in whole px,
    degrees counter-clockwise, the change of a factor that 0 leaves alone, bits to keep, or the level from
    which on a pixel is inverted. Those that have two directions get a random sign.
    """
    share = config.magnitude / (_BINS - 1)
    shift = 150.0 / 331.0 * size * share
    signed = [0.3 * share] * 2 + [shift] * 2 + [30 * share] + [0.9 * share] * 4
    table = np.array([0, *signed, np.rint(8 - 4 * share), 255 * (1 - share), 0, 0])
    ops = rng.integers(0, len(OPS), (n, config.num_ops))
    signs = rng.integers(0, 2, (n, config.num_ops)) * 2 - 1
    parameters = table[ops] * np.where((ops >= 1) & (ops <= 9), signs, 1)
    parameters = np.where((ops == 3) | (ops == 4), np.trunc(parameters), parameters)
    return ops, parameters


def random_erasing(rng: np.random.Generator, n: int, config: ErasingConfig, size: int) -> Int64:
    """Boxes [n, 4] (top, left, height, width in px) to erase in square images; all 0: none.

    Zhong et al. 2017 as torchvision has it: ten tries at an area uniform in [min_area, max_area] of the image
    and an aspect ratio log-uniform in [0.3, 3.3]; the first that fits is taken, else nothing is erased.
    """
    chosen = rng.random(n) < config.probability
    area = size * size * rng.uniform(config.min_area, config.max_area, (n, _TRIES))
    ratio = np.exp(rng.uniform(np.log(0.3), np.log(3.3), (n, _TRIES)))
    place = rng.random((n, 2))
    height = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    width = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (height >= 1) & (width >= 1) & (height < size) & (width < size)
    every, first = np.arange(n), np.argmax(fits, axis=1)
    shapes = np.stack([height[every, first], width[every, first]], axis=1)
    corners = np.floor(place * (size - shapes + 1)).astype(np.int64)
    erased: Int64 = np.hstack([corners, shapes]) * (chosen & fits.any(axis=1))[:, None]
    return erased
