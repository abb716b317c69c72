"""RandAugment's operations in a DALI graph, each image with an operation of its own.

The five that move pixels are one warp with a matrix an image. Where DALI's arithmetic is cheap, the levels
are torchvision's to the last one; its filters, its equalisation and its saturation are taken as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, math, types

from data.augment import OPS
from data.plan import BatchPlan

PER_OP = 3
"""What `op_inputs` gives for each operation of an image."""
DTYPES = (types.INT32, types.FLOAT, types.FLOAT)
NDIM = (0, 0, 2)
_MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_BRANCHES = ("identity", "move", *OPS[6:])

# DALI 2.4 warns of the names of 2.1, and its stubs do not have them.
_filter = fn.filter if hasattr(fn, "filter") else fn.experimental.filter  # type: ignore[attr-defined]
_equalizer = fn.equalize if hasattr(fn, "equalize") else fn.experimental.equalize  # type: ignore[attr-defined]


def op_inputs(plan: BatchPlan) -> tuple[Any, ...]:
    """For each operation of an image: its branch [n], its parameter [n], the matrix of its warp [n, 2, 3]."""
    inputs: list[Any] = []
    for ops, parameters in zip(plan.ops.T, plan.parameters.T.tolist(), strict=True):
        drawn = list(zip([OPS[op] for op in ops], parameters, plan.resized, strict=True))
        branches = [_BRANCHES.index("move" if name in _MOVES else name) for name, _, _ in drawn]
        values = [_value(name, parameter) for name, parameter, _ in drawn]
        matrices = [_matrix(name, parameter, size) for name, parameter, size in drawn]
        inputs += [np.array(branches, np.int32), np.array(values, np.float32), np.array(matrices, np.float32)]
    return tuple(inputs)


def apply_op(images: Any, branch: Any, value: Any, matrix: Any, on_gpu: bool) -> Any:
    """One operation of each of these uint8 HWC images."""
    return _choose(0, len(_BRANCHES) - 1, images, branch, value, matrix, on_gpu)


def _choose(low: int, high: int, images: Any, branch: Any, value: Any, matrix: Any, on_gpu: bool) -> Any:
    # Halving, so that an image passes four forks and not eleven.
    if low == high:
        return _BUILD[_BRANCHES[low]](images, value, matrix, on_gpu)
    middle = (low + high) // 2
    if branch <= middle:
        result = _choose(low, middle, images, branch, value, matrix, on_gpu)
    else:
        result = _choose(middle + 1, high, images, branch, value, matrix, on_gpu)
    return result


def _value(name: str, parameter: float) -> float:
    if name in ("brightness", "color", "contrast", "sharpness"):
        return 1 + parameter
    return 256 - 2 ** (8 - parameter) if name == "posterize" else parameter


def _matrix(name: str, parameter: float, size: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """From a pixel of the result to one of the source; coordinates in px from the upper left corner."""
    matrix = np.eye(2, 3)
    if name in ("shear_x", "shear_y"):
        matrix[(0, 1) if name == "shear_x" else (1, 0)] = parameter
    elif name in ("translate_x", "translate_y"):
        matrix[0 if name == "translate_x" else 1, 2] = -parameter
    elif name == "rotate":
        sin, cos = np.sin(np.deg2rad(parameter)), np.cos(np.deg2rad(parameter))
        matrix[:, :2] = [[cos, -sin], [sin, cos]]
        middle = size[::-1] / 2
        matrix[:, 2] = middle - matrix[:, :2] @ middle
    return matrix


def _identity(images: Any, value: Any, matrix: Any, on_gpu: bool) -> Any:
    return images


def _move(images: Any, value: Any, matrix: Any, on_gpu: bool) -> Any:
    return fn.warp_affine(images, matrix=matrix, fill_value=0, interp_type=types.INTERP_NN)


def _brightness(images: Any, value: Any, matrix: Any, on_gpu: bool) -> Any:
    return fn.cast(math.floor(images * _beside(value, on_gpu)), dtype=types.UINT8)


def _color(images: Any, value: Any, matrix: Any, on_gpu: bool) -> Any:
    return fn.saturation(images, saturation=value)


def _contrast(images: Any, value: Any, matrix: Any, on_gpu: bool) -> Any:
    means = fn.reductions.mean(images, axis_names="HW", keep_dims=True)
    grey = types.Constant(np.array([0.2989, 0.587, 0.114], np.float32))
    center = fn.reductions.sum(means * grey, axis_names="C", keep_dims=True)
    return fn.cast(math.floor(center + (images - center) * _beside(value, on_gpu)), dtype=types.UINT8)


def _sharpness(images: Any, value: Any, matrix: Any, on_gpu: bool) -> Any:
    blur = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    same = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    kernel = types.Constant(blur) + types.Constant(same - blur) * value
    return _filter(images, _beside(kernel, on_gpu))


def _posterize(images: Any, value: Any, matrix: Any, on_gpu: bool) -> Any:
    return images & _beside(fn.cast(value, dtype=types.UINT8), on_gpu)


def _solarize(images: Any, value: Any, matrix: Any, on_gpu: bool) -> Any:
    bright = images >= _beside(value, on_gpu)
    inverted = types.Constant(255, dtype=types.UINT8) - images
    return bright * inverted + (bright ^ True) * images


def _autocontrast(images: Any, value: Any, matrix: Any, on_gpu: bool) -> Any:
    low = fn.reductions.min(images, axis_names="HW", keep_dims=True)
    high = fn.reductions.max(images, axis_names="HW", keep_dims=True)
    flat = low == high
    scale = (high - low + flat * types.Constant(255, dtype=types.UINT8)) / 255.0
    return fn.cast(math.floor((images - low * (flat ^ True)) / scale), dtype=types.UINT8)


def _equalize(images: Any, value: Any, matrix: Any, on_gpu: bool) -> Any:
    return _equalizer(images)


def _beside(value: Any, on_gpu: bool) -> Any:
    """On the device of the images, for arithmetic with them."""
    return value.gpu() if on_gpu else value


_BUILD = dict(
    zip(
        _BRANCHES,
        (
            _identity,
            _move,
            _brightness,
            _color,
            _contrast,
            _sharpness,
            _posterize,
            _solarize,
            _autocontrast,
            _equalize,
        ),
        strict=True,
    )
)
