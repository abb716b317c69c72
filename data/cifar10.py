"""CIFAR-10 as image files: from torchvision's download."""

from __future__ import annotations

import shutil
from pathlib import Path

from deploy.errors import LabError


def write_cifar10(root: Path) -> None:
    """60,000 PNGs of 32 x 32 px in root/{train,test}/<class>/. Raises LabError where the download fails."""
    from torchvision.datasets import CIFAR10

    download = root / "download"
    for split, train in (("train", True), ("test", False)):
        try:
            images = CIFAR10(str(download), train=train, download=True)
        except Exception as error:
            raise LabError(
                f"CIFAR-10 could not be downloaded ({error}): with no network, give a local copy as a folder "
                "with train/ and test/ of class folders: data.source=/path"
            ) from error
        for row, (image, label) in enumerate(images):
            folder = root / split / images.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{row:05d}.png")
    shutil.rmtree(download)
