"""The samples of a model of anyone's: an .npz file, or a folder of images, read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from configs.quantize import PreprocessConfig
from deploy.accuracy import IMAGE_SUFFIXES, list_images
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.preprocess import load_image, preprocess
from deploy.tensor_spec import TensorSpec
from deploy.tensors import Samples, Tensors, read_tensors

Feed = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ImageFiles:
    """Samples of a model with one input, each an image file. A `deploy.tensors.Samples`."""

    input: str
    spec: InputSpec
    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: npt.NDArray[np.int64]) -> ImageFiles:
        labels = None if self.labels is None else self.labels[rows]
        return ImageFiles(self.input, self.spec, tuple(self.paths[row] for row in rows), labels)

    def batches(self, size: int) -> Iterator[Tensors]:
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            images = np.stack([preprocess(load_image(path), self.spec) for path in self.paths[rows]])
            yield Tensors({self.input: images}, None if self.labels is None else self.labels[rows])


@dataclass(frozen=True)
class Feeds(Sequence[Feed]):
    """Samples one by one, every input with a batch of 1."""

    samples: Samples

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Feed: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Feed]: ...
    def __getitem__(self, index: int | slice) -> Feed | Sequence[Feed]:
        rows = np.arange(len(self))[index]
        taken = self.samples.take(np.atleast_1d(rows))
        return dict(next(taken.batches(1)).arrays) if isinstance(index, int) else Feeds(taken)

    def __iter__(self) -> Iterator[Feed]:
        return (dict(batch.arrays) for batch in self.samples.batches(1))


def read_samples(
    path: Path, inputs: Sequence[TensorSpec], how: PreprocessConfig, num_classes: int | None
) -> Samples:
    """Of a folder or of an .npz file. Raises LabError."""
    if path.is_dir():
        return _read_folder(path, inputs, how, num_classes)
    return read_tensors(path, inputs, num_classes)


def split(found: Samples, test: Samples | None, num_calibration: int, seed: int) -> tuple[Samples, Samples]:
    """(for calibration, for comparison), no sample in both. Without a `test` of its own, what calibration
    leaves is compared, and that is a fifth of all at least. Raises LabError for fewer samples than two."""
    count = len(found)
    if test is not None:
        return found.take(choose(count, num_calibration, seed)), test
    if count < 2:
        raise LabError(
            f"calibration: {count} sample, at least 2 are needed, one to calibrate and one to compare on; "
            "hundreds are usual. Or give test=FOLDER or test=FILE.npz"
        )
    chosen = choose(count, min(num_calibration, count - max(1, count // 5)), seed)
    return found.take(chosen), found.take(np.setdiff1d(np.arange(count), chosen))


def choose(count: int, number: int, seed: int) -> npt.NDArray[np.int64]:
    """`number` of `count` indexes, in order; all where there are no more."""
    drawn = np.random.Generator(np.random.Philox(seed)).permutation(count)[:number]
    return np.sort(drawn).astype(np.int64)


def _read_folder(
    folder: Path, inputs: Sequence[TensorSpec], how: PreprocessConfig, num_classes: int | None
) -> ImageFiles:
    inside = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    folders = [path.name for path in inside if path.is_dir()]
    if not inside:
        raise LabError(f"{folder}: holds no image; give a folder of images, or an .npz file")
    if folders and len(folders) < len(inside):
        raise LabError(
            f"{folder}: holds both files and folders; give images alone, or a sub-folder for each class"
        )
    names = tuple(str(i) for i in range(num_classes or 0))
    if not folders:
        if wrong := [path.name for path in inside if path.suffix.lower() not in IMAGE_SUFFIXES]:
            raise LabError(f"{folder}: {wrong[0]!r} must end in one of {sorted(IMAGE_SUFFIXES)}; take it out")
        return ImageFiles(inputs[0].name, image_spec(inputs, how, names), tuple(inside), None)
    found = list_images(folder, folders)
    paths = tuple(path for path, _ in found)
    known = _labels_of(folders, num_classes)
    labels = np.array([known[place] for _, place in found], np.int64) if known else None
    if len(folders) == num_classes:
        names = tuple(folders)
    return ImageFiles(inputs[0].name, image_spec(inputs, how, names), paths, labels)


def _labels_of(folders: Sequence[str], num_classes: int | None) -> list[int] | None:
    """Of class folders: their numbers where there is one for each class, the number that is a folder's name
    where all are such; None where it cannot be known."""
    if num_classes is None:
        return None
    if all(name.isdecimal() and int(name) < num_classes for name in folders):
        return [int(name) for name in folders]
    return list(range(num_classes)) if len(folders) == num_classes else None


def image_spec(
    inputs: Sequence[TensorSpec], how: PreprocessConfig, class_names: tuple[str, ...]
) -> InputSpec:
    """How an image file becomes the one input N x 3 x S x S. Raises LabError where there is no such input."""
    shapes = {spec.name: str(spec) for spec in inputs}
    image = inputs[0]
    sides = image.shape[2:]
    if len(inputs) > 1 or len(image.shape) != 4 or image.shape[1] not in (3, None):
        raise LabError(
            f"the model takes {shapes}: images can be given to one input float32 N x 3 x S x S; "
            "give an .npz file with an array for each input"
        )
    fixed = {side for side in sides if side is not None}
    size = how.size or (fixed.pop() if len(fixed) == 1 else None)
    if size is None or image.dtype != "float32" or any(side not in (None, size) for side in sides):
        remedy = "give preprocess.size=" if not fixed else "give an .npz file of that shape"
        raise LabError(
            f"the model takes {shapes}, preprocess.size is {how.size}: images become float32 squares of one "
            f"size; {remedy}"
        )
    return InputSpec(
        size=size,
        resize=how.resize or size,
        mean=tuple(how.mean),
        std=tuple(how.std),
        class_names=class_names,
    )
