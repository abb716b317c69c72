"""Pictures into and out of the demo's server: uploads decoded within bounds, frames encoded for viewers."""

from __future__ import annotations

import io
import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from deploy.demo.limits import MAX_PIXELS, MAX_SHOWN_SIDE
from deploy.demo.picture_size import KINDS, picture_size
from deploy.errors import LabError
from deploy.preprocess import Image, decode_image

QUALITY = 80
"""Of JPEG: 640 x 480 px take 30 to 70 KB and 1.3 ms of an x86 core of 2023; 95 looks no better."""


def check_library() -> None:
    """Raises LabError where neither Pillow nor OpenCV is installed."""
    if find_spec("PIL") is None and find_spec("cv2") is None:
        raise LabError("the demo's page needs Pillow or OpenCV for its pictures: pip install pillow")


def decode_upload(encoded: bytes) -> Image:
    """A JPEG, PNG, GIF (its first frame), WebP or BMP as uint8 H x W x 3, RGB, upright.

    Its header is read before any decoder sees it. Raises LabError for other formats, for more than MAX_PIXELS
    and for what cannot be decoded.
    """
    found = picture_size(encoded)
    if found is None:
        raise LabError("this is no picture that can be read; use JPEG, PNG, GIF, WebP or BMP")
    kind, width, height = found
    if width * height > MAX_PIXELS:
        raise LabError(
            f"the picture has {width} x {height} pixels, at most {MAX_PIXELS // 1_000_000} million are "
            "taken; make it smaller"
        )
    image = decode_image(encoded, f"this {kind} picture", formats=KINDS)
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise LabError(f"this {kind} picture is larger than its header says; save it again")
    return image


def encode_frame(image: Image) -> bytes:
    """JPEG of uint8 H x W x 3, RGB; by a whole factor smaller where a side is longer than MAX_SHOWN_SIDE."""
    factor = -(-max(image.shape[:2]) // MAX_SHOWN_SIDE)
    try:
        from PIL import Image as pillow  # noqa: N813  # a module, in spite of its name
    except ImportError:
        return _encode_with_opencv(image, factor)
    picture = pillow.fromarray(image)
    if factor > 1:
        picture = picture.reduce(factor)
    # Pillow keeps the GIL while it encodes into a buffer, and gives it up while it writes to a descriptor, so
    # the thread that classifies need not wait for 1.3 ms. The descriptor is memory and no file.
    if not hasattr(os, "memfd_create"):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()
    with os.fdopen(os.memfd_create("frame"), "w+b", buffering=0) as memory:
        picture.save(memory, "JPEG", quality=QUALITY)
        memory.seek(0)
        return memory.read()


def _encode_with_opencv(image: Image, factor: int) -> bytes:
    cv2: Any = import_module("cv2")
    if factor > 1:
        height, width = image.shape[:2]
        size = (max(width // factor, 1), max(height // factor, 1))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(
        ".jpg", np.ascontiguousarray(image[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    return bytes(encoded)
