"""How often a variant is right, and how near to FP32, over a folder of images or over tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.manifest import Bundle
from deploy.preprocess import load_image, preprocess
from deploy.runner import Arrays, Feed, Runner
from deploy.tensors import Tensors, read_tensors

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}

Logits = NDArray[np.float32]


def list_images(folder: Path | str, class_names: Sequence[str]) -> list[tuple[Path, int]]:
    """Sorted (path, class index) of a folder with one sub-folder a class name.

    Hidden files are ignored. Raises LabError for a class folder that is missing, unknown or empty and for a
    file that is no image: a score over half the images would be a wrong number.
    """
    root = Path(folder)
    if not root.is_dir():
        raise LabError(f"{root}: no such folder; give one with a sub-folder for each class")
    found = {p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")}
    if found != set(class_names):
        missing, unknown = sorted(set(class_names) - found), sorted(found - set(class_names))
        raise LabError(
            f"{root}: the sub-folders must be the bundle's class names: missing {missing[:8]}, "
            f"unknown {unknown[:8]}"
        )
    images = []
    for index, name in enumerate(class_names):
        files = sorted(p for p in (root / name).iterdir() if not p.name.startswith("."))
        if not files:
            raise LabError(f"{root / name}: holds no image; add some, or test with other images")
        for file in files:
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                raise LabError(
                    f"{file}: must end in one of {sorted(IMAGE_SUFFIXES)}; take it out of the folder"
                )
            images.append((file, index))
    return sorted(images)


def images_for(bundle: Bundle, folder: Path | str) -> list[tuple[Path, int]]:
    """:func:`list_images` with the bundle's classes. Raises LabError where it takes no image files."""
    if bundle.input is None or bundle.class_output is None:
        raise LabError(f"{bundle.root}: does not classify image files: give --inputs FILE.npz, not --images")
    return list_images(folder, bundle.input.class_names)


def tensors_for(bundle: Bundle, file: Path) -> Tensors:
    """:func:`read_tensors` with the bundle's inputs. Raises LabError where its samples are image files."""
    if bundle.samples:
        raise LabError(f"{bundle.root}: its samples are image files: leave --inputs out, give --images")
    return read_tensors(file, bundle.inputs, bundle.num_classes)


def classify(runner: Runner, images: Sequence[Path], spec: InputSpec, batch: int) -> Logits:
    """Logits of image files, float32 num_images x num_classes."""
    return classify_all({"": runner}, images, spec, batch)[""]


def classify_all(
    runners: Mapping[str, Runner],
    images: Sequence[Path],
    spec: InputSpec,
    batch: int,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Logits]:
    """As :func:`classify` with several runners; every image is decoded once.

    advance: called with the number of images done since the last call.
    """
    parts: dict[str, list[Logits]] = {name: [] for name in runners}
    for start in range(0, len(images), batch):
        files = images[start : start + batch]
        inputs = np.stack([preprocess(load_image(file), spec) for file in files])
        for name, runner in runners.items():
            feed = {runner.inputs[0].name: inputs}
            parts[name].append(answer(runner, feed)[runner.outputs[0].name])
        advance(len(files))
    return {name: np.concatenate(logits) for name, logits in parts.items()}


def top1(logits: Logits, labels: Sequence[int]) -> float:
    """The fraction, 0 to 1, whose largest logit is the label's."""
    return float(np.mean(logits.argmax(axis=1) == np.asarray(labels)))


def agreement(logits: Logits, reference: Logits) -> float:
    """The fraction, 0 to 1, on which two models name the same class."""
    return float(np.mean(logits.argmax(axis=1) == reference.argmax(axis=1)))


def answer(runner: Runner, feed: Feed) -> Arrays:
    """Any number of samples through a model that may have a fixed batch: the last piece is filled up."""
    fixed = runner.inputs[0].shape[0]
    if fixed is None:
        return runner.infer(feed)
    count = len(next(iter(feed.values())))
    pieces: list[Arrays] = []
    for start in range(0, count, fixed):
        piece = {name: array[start : start + fixed] for name, array in feed.items()}
        # np.resize repeats what is there
        full = {name: np.resize(array, (fixed, *array.shape[1:])) for name, array in piece.items()}
        pieces.append(runner.infer(full))
    return {name: np.concatenate([piece[name] for piece in pieces])[:count] for name in pieces[0]}
