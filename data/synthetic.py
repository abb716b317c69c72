"""JPEGs that we draw: the same on every machine, at the sizes of real photographs, and learnable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from configs.images import SyntheticConfig


def write_synthetic(root: Path, config: SyntheticConfig) -> None:
    """root/{train,val}/class_NNN/NNNNNN.jpg, classes in turn; the splits share no image."""
    for split, count, first in (("train", config.num_train, 0), ("val", config.num_val, config.num_train)):
        for row in range(first, first + count):
            label = row % config.num_classes
            folder = root / split / f"class_{label:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = draw(row, label, config.num_classes, config.height, config.width)
            Image.fromarray(pixels).save(folder / f"{row:06d}.jpg", quality=90)


def draw(row: int, label: int, num_classes: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, 3]: a grating on a soft coloured ground with grain.

    The class sets the grating's direction and hue, `row` everything else (phase, wavelength, ground, grain),
    so that a class is a texture at any position and any size, as a crop must leave it recognisable. The
    grain gives a JPEG the 100 kB or so that a photograph of this size has.
    """
    rng = np.random.Generator(np.random.Philox(key=[row, 0]))
    y = np.linspace(0, height / 100, height, dtype=np.float32)[:, None]
    x = np.linspace(0, width / 100, width, dtype=np.float32)[None, :]
    angle = np.pi * label / num_classes + rng.normal(0, 0.02)
    wave = rng.uniform(1.5, 3.0)
    phase = 2 * np.pi * wave * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 2 * np.pi)
    hue = 2 * np.pi * (label / num_classes + np.arange(3, dtype=np.float32) / 3)
    swell = np.sin(rng.uniform(0.3, 1.0) * (x + y) + rng.uniform(0, 6))
    ground = rng.uniform(70, 180, 3) + 25 * swell[..., None]
    image = ground + 45 * np.sin(phase)[..., None] * (1 + 0.6 * np.cos(hue)) + 20 * np.cos(hue)
    image += rng.normal(0, 14, (height, width, 1)) + rng.normal(0, 4, (height, width, 3))
    pixels: npt.NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
    return pixels
