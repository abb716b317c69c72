"""From an image file to the network's input, in numpy: the five lines of InputSpec."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import LabError
from deploy.input_spec import InputSpec

Image = NDArray[np.uint8]
Tensor = NDArray[np.float32]


def load_image(path: Path | str) -> Image:
    """Decode a file to uint8 H x W x 3, RGB, upright (the EXIF orientation applied).

    Uses Pillow, or OpenCV where Pillow is not installed. Raises LabError for a file that is not an image,
    has more than 8 bits a channel, or when neither library is there.
    """
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}; check the path") from error
    return decode_image(encoded, str(path))


def decode_image(encoded: bytes, name: str, formats: tuple[str, ...] | None = None) -> Image:
    """As :func:`load_image`, of a file's bytes; `name` is for the errors.

    formats: the only ones that Pillow may try, by its names. OpenCV has no such choice.
    """
    try:
        from PIL import Image as pillow  # noqa: N813  # a module, in spite of its name
        from PIL import ImageOps
    except ImportError:
        return _decode_with_opencv(encoded, name)
    try:
        with pillow.open(BytesIO(encoded), formats=formats) as picture:
            if picture.mode.startswith(("I", "F")):
                raise LabError(f"{name}: more than 8 bits a channel ({picture.mode}); save it as 8-bit")
            upright = ImageOps.exif_transpose(picture)
            return np.asarray(upright.convert("RGB"))
    except LabError:
        raise
    except (
        Exception
    ) as error:  # a broken file leads a decoder to whatever there is: KeyError, zlib.error, ...
        raise LabError(f"{name}: cannot be read as an image ({error}); replace or remove the file") from error


def _decode_with_opencv(encoded: bytes, name: str) -> Image:
    try:
        cv2: Any = import_module("cv2")
    except ImportError as error:
        raise LabError("reading image files needs Pillow or OpenCV: pip install pillow") from error
    # IMREAD_COLOR gives 8-bit BGR and applies the EXIF orientation.
    picture: Any = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
    if picture is None:
        raise LabError(f"{name}: cannot be read as an image; replace or remove the file")
    return np.ascontiguousarray(picture[:, :, ::-1])


def preprocess(image: Image, spec: InputSpec) -> Tensor:
    """uint8 H x W x 3 RGB to float32 3 x size x size, as InputSpec's docstring says.

    The filter is the antialiased bilinear one of Pillow and ATen (`aten/.../UpSampleKernel.cpp`): a triangle,
    separable, so a resize is one matrix product a direction; only what the crop keeps is computed.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 H x W x 3, got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    resized = spec.resized_shape(height, width)
    top, left = spec.crop_offset(*resized)
    first_row, rows = _weights(height, resized[0], top, spec.size)
    first_column, columns = _weights(width, resized[1], left, spec.size)

    needed = image[first_row : first_row + rows.shape[1], first_column : first_column + columns.shape[1]]
    pixels = needed.astype(np.float32)
    squeezed = (rows @ pixels.reshape(len(pixels), -1)).reshape(spec.size, -1, 3)
    # Contiguous planes: numpy multiplies strided ones without BLAS, many times slower.
    planes = np.ascontiguousarray(squeezed.transpose(2, 0, 1)) @ columns.T

    mean = np.array(spec.mean, np.float32).reshape(3, 1, 1)
    std = np.array(spec.std, np.float32).reshape(3, 1, 1)
    return np.asarray((planes / np.float32(255) - mean) / std)


@lru_cache(maxsize=32)  # at most a few MiB each; a folder's images share a handful of shapes
def _weights(size_in: int, size_out: int, start: int, count: int) -> tuple[int, Tensor]:
    """Rows start .. start+count of the resize from size_in to size_out px, as a matrix.

    Returns the first source pixel that any row needs, and float32 count x (source pixels needed).
    """
    scale = size_in / size_out
    support = max(scale, 1.0)
    centre = (np.arange(start, start + count) + 0.5) * scale
    first = max(int(centre[0] - support), 0)
    last = min(int(np.ceil(centre[-1] + support)), size_in)
    distance = (np.arange(first, last) + 0.5)[None, :] - centre[:, None]
    triangle = np.maximum(0.0, 1.0 - np.abs(distance) / support)
    matrix = (triangle / triangle.sum(axis=1, keepdims=True)).astype(np.float32)
    matrix.flags.writeable = False  # it is shared by every later call
    return first, matrix
