"""Small image files for the tests of other modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ORIENTATION = 0x0112


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: waves, an edge and some grain, so that a wrong filter or a shift shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [
        np.sin(rng.uniform(0.05, 0.4) * y + rng.uniform(0.05, 0.4) * x + rng.uniform(0, 6)) for _ in range(3)
    ]
    image = 128 + 60 * np.stack(waves, axis=2) + rng.normal(0, 8, (height, width, 3))
    image[height // 3 :, : width // 4] += 50
    return np.clip(image, 0, 255).astype(np.uint8)


def save(
    path: Path, height: int, width: int, *, mode: str = "RGB", seed: int = 0, orientation: int | None = None
) -> Path:
    """A scene as a file of the format of its suffix; `orientation` is the EXIF tag, the size as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    Image.fromarray(scene(height, width, seed)).convert(mode).save(path, exif=exif)
    return path
