"""scikit-learn's handwritten digits as image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_digits(root: Path) -> None:
    """1,797 greyscale PNGs of 8 x 8 px in root/{train,val}/<digit>/: a fifth held out, stratified.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository (the test part).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    rows = np.arange(len(labels))
    train, val = train_test_split(rows, test_size=0.2, stratify=labels, random_state=0)
    for split, members in (("train", train), ("val", val)):
        for row in members:
            folder = root / split / str(labels[row])
            folder.mkdir(parents=True, exist_ok=True)
            # The scan counted ink on a 4 x 4 grid: 0 to 16.
            pixels = np.rint(images[row].reshape(8, 8) * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{row:04d}.png")
