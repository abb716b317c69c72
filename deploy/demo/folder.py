"""A folder of images as a slide show."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from threading import Event

from deploy.accuracy import IMAGE_SUFFIXES
from deploy.demo.moving import Pictures, Tell
from deploy.errors import LabError
from deploy.preprocess import Image, load_image

PERIOD_S = 1.0


def from_folder(folder: Path, loop: bool) -> Pictures:
    """Its images and those of its sub-folders in order of name, one every second.

    Hidden files are left out; one that cannot be read is passed over, and the viewer is told. Raises LabError
    where there is no image.
    """
    files = _images(folder)

    def pictures(halt: Event, tell: Tell) -> Generator[Image, None, None]:
        while True:
            good = 0
            for file in files:
                if halt.is_set():
                    return
                try:
                    image = load_image(file)
                except LabError as error:
                    tell("playing", str(error))
                else:
                    good += 1
                    tell("playing", None)
                    yield image
                halt.wait(PERIOD_S)
            if not good:
                tell("failed", f"{folder}: none of its {len(files)} images can be read")
                return
            if not loop:
                tell("ended", f"{folder}: each of its {len(files)} images was shown")
                return

    return pictures


def _images(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    files = sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if not files:
        raise LabError(f"{folder}: holds no image that ends in one of {sorted(IMAGE_SUFFIXES)}")
    return files
