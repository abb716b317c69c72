"""A folder of class folders as a list of (path, label)."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from deploy.errors import LabError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})


@dataclass(frozen=True)
class Listing:
    """Files that claim to be images, sorted by class and name; nothing has been opened."""

    paths: list[str]
    labels: list[int]
    class_names: tuple[str, ...]
    ignored: Counter[str]
    """Other files by suffix, so that what is left out is said."""
    weights: list[float] | None = None
    """See `Index.weights`."""
    notes: list[str] = field(default_factory=list)
    """For the log."""


def class_folders(root: Path) -> list[str]:
    return sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")
    )


def list_folder(root: Path, class_names: tuple[str, ...] | None = None) -> Listing:
    """Images below `root`, labelled by the sorted names of its folders or by `class_names`.

    Raises LabError where `root` is missing or empty, has one class only, or where its folders are not the
    given classes.
    """
    if not root.is_dir():
        raise LabError(f"no folder {root}: give the folder that holds one folder of images a class")
    folders = class_folders(root)
    if not folders:
        raise LabError(f"{root} holds no class folders: one folder of images a class is expected")
    names = class_names or tuple(folders)
    missing, unknown = sorted(set(names) - set(folders)), sorted(set(folders) - set(names))
    if missing or unknown:
        raise LabError(
            f"{root} does not have the {len(names)} classes of the training images: "
            f"missing class folders {missing[:10]}, unknown ones {unknown[:10]}; give both splits the same"
        )
    paths: list[str] = []
    labels: list[int] = []
    ignored: Counter[str] = Counter()
    empty = []
    for label, name in enumerate(names):
        files = sorted(
            os.path.join(folder, file)
            for folder, _, inside in os.walk(root / name, followlinks=True)
            for file in inside
            if not file.startswith(".")  # ._photo.jpg is what a Mac leaves beside photo.jpg
        )
        suffixes = [os.path.splitext(file)[1].lower() for file in files]
        images = [file for file, suffix in zip(files, suffixes, strict=True) if suffix in SUFFIXES]
        ignored.update(suffix or "no suffix" for suffix in suffixes if suffix not in SUFFIXES)
        if not images:
            empty.append(name)
        paths += images
        labels += [label] * len(images)
    if empty:
        raise LabError(f"{root}: class folders without an image: {empty[:10]}; fill or remove them")
    if len(names) < 2:
        raise LabError(
            f"{root} has one class only, {names[0]!r}: a classifier needs at least two class folders"
        )
    return Listing(paths, labels, names, ignored)
