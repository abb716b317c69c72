"""Samples of a model as tensors, and the .npz file that they come in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from deploy.errors import LabError
from deploy.tensor_spec import TensorSpec, times

LABELS = "labels"
"""The key of the class indexes beside the inputs, where no input has that name."""


class Samples(Protocol):
    """Of a model, in memory or not."""

    @property
    def labels(self) -> NDArray[np.int64] | None: ...
    def __len__(self) -> int: ...
    def take(self, rows: NDArray[np.int64]) -> Samples: ...
    def batches(self, size: int) -> Iterator[Tensors]:
        """In order; the last may be smaller."""
        ...


@dataclass(frozen=True)
class Tensors:
    """Samples in memory: for each input of the model an array of n x its shape, and maybe n class indexes."""

    arrays: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, rows: slice | NDArray[np.int64]) -> Tensors:
        labels = None if self.labels is None else self.labels[rows]
        return Tensors({name: array[rows] for name, array in self.arrays.items()}, labels)

    def batches(self, size: int) -> Iterator[Tensors]:
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))


def read_tensors(path: Path, inputs: Sequence[TensorSpec], num_classes: int | None = None) -> Tensors:
    """An .npz file: a key for each input, all of n samples, and maybe `labels`. It is never unpickled.

    num_classes: what the labels must stay below; None where that is not known.
    Raises LabError that lists every mistake: names, types, shapes, numbers of samples, NaN and infinity.
    """
    return checked(str(path), _load(path), inputs, num_classes)


def checked(
    what: str, found: Mapping[str, Any], inputs: Sequence[TensorSpec], num_classes: int | None
) -> Tensors:
    """The arrays of :func:`read_tensors`, which come from `what`."""
    names = [spec.name for spec in inputs]
    labels = found.get(LABELS) if LABELS not in names else None
    problems = []
    if missing := [name for name in names if name not in found]:
        problems.append(f"no array for the inputs {missing}; save them by these names")
    if unknown := sorted(set(found) - {*names, LABELS}):
        problems.append(f"{unknown} are no inputs of the model, which takes {names}; leave them out")
    for spec in inputs:
        if spec.name in found:
            problems += _wrong_with(spec, found[spec.name])
    counts = {name: len(found[name]) for name in names if name in found and found[name].ndim}
    if len(set(counts.values())) > 1:
        problems.append(f"the inputs have different numbers of samples: {counts}; save as many of each")
    elif labels is not None and any(counts.values()):
        problems += _wrong_with_labels(labels, next(iter(counts.values())), num_classes)
    if problems:
        raise LabError("\n  - ".join([f"{what}: cannot be taken for samples:", *problems]))
    return Tensors({name: found[name] for name in names}, None if labels is None else labels.astype(np.int64))


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise LabError(f"{path}: one array without a name; save with numpy.savez, a name for each input")
        with archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise LabError(f"{path}: {error.strerror or error}; give an .npz file that is there") from error
    except (ValueError, EOFError, BadZipFile) as error:
        raise LabError(
            f"{path}: cannot be read ({error}); write it with numpy.savez, of plain numbers: objects would "
            "run code when they are opened"
        ) from error


def _wrong_with(spec: TensorSpec, array: NDArray[Any]) -> list[str]:
    own = (None, *spec.shape[1:])
    fits = array.ndim == len(own) and all(
        side in (None, length) for side, length in zip(own[1:], array.shape[1:], strict=True)
    )
    if array.dtype != np.dtype(spec.dtype) or not fits:
        remedy = f"save array.astype(numpy.{spec.dtype})" if fits else "save samples of that shape"
        return [
            f"{spec.name!r} is {array.dtype} {times(array.shape)}, must be {spec.dtype} {times(own)}: "
            f"{remedy}"
        ]
    if 0 in array.shape:
        return [f"{spec.name!r} is {times(array.shape)}: holds no sample; save at least one"]
    if array.dtype.kind == "f":
        # Row by row: a mask of all samples at once would be as large as a quarter of them.
        bad = [i for i, row in enumerate(array) if not np.isfinite(row).all()]
        if bad:
            return [
                f"{spec.name!r} holds NaN or infinity in {len(bad)} of {len(array)} samples, the first is "
                f"{bad[0]}; mend or leave out those samples"
            ]
    return []


def _wrong_with_labels(labels: NDArray[Any], count: int, num_classes: int | None) -> list[str]:
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        return [f"{LABELS!r} is {labels.dtype} {times(labels.shape)}, must be {count} integers, one a sample"]
    limit = num_classes or np.iinfo(np.int64).max
    if labels.min() < 0 or labels.max() >= limit:
        found = f"{LABELS!r} is from {labels.min()} to {labels.max()}"
        return [f"{found}, must be class indexes from 0 to {limit - 1}"]
    return []
