"""From an image file to the network's input, in numpy: the five lines of InputSpec."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.errors import LabError
from deploy.input_spec import InputSpec

Image = NDArray[np.uint8]
Tensor = NDArray[np.float32]
_MOST_ROWS = 8  # of a band; with more of them more weights are 0
# OpenBLAS shares a product of more multiplications among threads. On cores that a backend keeps busy, waking
# them costs more than the whole resize: 30 to 100 ms at times.
_ONE_THREAD = 1 << 18


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
    # IMREAD_COLOR gives 8-bit BGR and applies the EXIF orientation. What it cannot read is None, or an error.
    picture: Any = None
    with suppress(cv2.error):
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise LabError(f"{name}: cannot be read as an image; replace or remove the file")
    return np.ascontiguousarray(picture[:, :, ::-1])


def preprocess(image: Image, spec: InputSpec) -> Tensor:
    """uint8 H x W x 3 RGB to float32 3 x size x size, as InputSpec's docstring says.

    The filter is the antialiased bilinear one of Pillow and ATen (`aten/.../UpSampleKernel.cpp`): a triangle,
    separable, so a resize is one matrix product a direction; only what the crop keeps is computed. An output
    row takes from a few source rows, and those near it from nearly the same: so each product goes in bands.
    640 x 480 to 224 px: 1.0 ms on an AVX512 core, where whole products take 3.1 to 3.9, or 2.1 to 2.6 on two.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 H x W x 3, got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    resized = spec.resized_shape(height, width)
    top, left = spec.crop_offset(*resized)
    across, columns = _bands(width, resized[1], left, spec.size, 3 * spec.size)
    kept = across.stop - across.start
    down, rows = _bands(height, resized[0], top, spec.size, 3 * kept)
    needed = image[down, across]

    # Contiguous planes: numpy multiplies strided ones without BLAS, many times slower.
    squeezed = np.empty((3, spec.size, kept), np.float32)
    for band in rows:
        pixels = needed[band.takes].astype(np.float32)
        product = band.weights @ pixels.reshape(len(pixels), -1)
        squeezed[:, band.makes] = product.reshape(-1, kept, 3).transpose(2, 0, 1)
    tensor = np.empty((3 * spec.size, spec.size), np.float32)
    lines = squeezed.reshape(len(tensor), kept)
    for band in columns:
        tensor[:, band.makes] = lines[:, band.takes] @ band.weights.T

    planes = tensor.reshape(3, spec.size, spec.size)
    planes /= np.float32(255)
    planes -= np.array(spec.mean, np.float32).reshape(3, 1, 1)
    planes /= np.array(spec.std, np.float32).reshape(3, 1, 1)
    return planes


class _Band(NamedTuple):
    """Of a resize in one direction: the source pixels that it takes, the pixels that it makes, and float32
    (made) x (taken)."""

    takes: slice
    makes: slice
    weights: Tensor


@lru_cache(maxsize=64)  # at most a MiB or so each; a folder's images share a handful of shapes
def _bands(size_in: int, size_out: int, start: int, count: int, others: int) -> tuple[slice, list[_Band]]:
    """Pixels start .. start+count of the resize from size_in to size_out px, of `others` lines at once.

    Returns the source pixels that any of them needs, and the bands, which count both from 0.
    """
    scale = size_in / size_out
    support = max(scale, 1.0)
    centre = (np.arange(start, start + count) + 0.5) * scale
    first = np.maximum(centre - support, 0).astype(int)
    last = np.minimum(np.ceil(centre + support).astype(int), size_in)
    fitting = (n for n in range(_MOST_ROWS, 1, -1) if n * (n + 2) * support * others <= _ONE_THREAD)
    height, bands = next(fitting, 1), []
    for made in range(0, count, height):
        rows = slice(made, min(made + height, count))
        taken = np.arange(first[made], last[rows.stop - 1])
        distance = (taken + 0.5)[None, :] - centre[rows, None]
        triangle = np.maximum(0.0, 1.0 - np.abs(distance) / support)
        weights = (triangle / triangle.sum(axis=1, keepdims=True)).astype(np.float32)
        weights.flags.writeable = False  # it is shared by every later call
        bands.append(_Band(slice(int(taken[0] - first[0]), int(taken[-1] + 1 - first[0])), rows, weights))
    return slice(int(first[0]), int(last[-1])), bands
