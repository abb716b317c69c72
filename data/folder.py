"""A folder of class folders as a list of (path, label)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.fetch import Stored, part_of
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
    versions: dict[str, str] = field(default_factory=dict)
    """Of objects in a store, by path."""
    weights: list[float] | None = None
    """See `Index.weights`."""
    notes: list[str] = field(default_factory=list)
    """For the log."""


def class_folders(root: Path | str, stored: Mapping[str, Stored] | None = None) -> list[str]:
    """Names of the folders in `root`; `stored` as in `list_folder`."""
    if stored is None:
        names = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    else:
        inside = [url.removeprefix(f"{root}/") for url in stored if url.startswith(f"{root}/")]
        names = {name.partition("/")[0] for name in inside if "/" in name}
    return sorted(name for name in names if not name.startswith("."))


def _files_below(folder: str, stored: Mapping[str, Stored] | None) -> list[str]:
    if stored is not None:
        return sorted(url for url in stored if url.startswith(f"{folder}/"))
    return sorted(
        os.path.join(at, file) for at, _, inside in os.walk(folder, followlinks=True) for file in inside
    )


def list_folder(
    root: Path | str,
    class_names: tuple[str, ...] | None = None,
    stored: Mapping[str, Stored] | None = None,
) -> Listing:
    """Images below `root`, labelled by the sorted names of its folders or by `class_names`.

    Where `root` is a URL, `stored` are the objects below it, and a path holds the size that was listed: a
    body of another length is then an error.
    Raises LabError where `root` is missing or empty, has one class only, or where its folders are not the
    given classes.
    """
    if stored is None and not Path(root).is_dir():
        raise LabError(f"no folder {root}: give the folder that holds one folder of images a class")
    folders = class_folders(root, stored)
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
        # ._photo.jpg is what a Mac leaves beside photo.jpg
        files = [f for f in _files_below(f"{root}/{name}", stored) if not os.path.basename(f).startswith(".")]
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
    if stored is None:
        return Listing(paths, labels, names, ignored, {})
    sized = [part_of(path, 0, stored[path].size) for path in paths]
    versions = {at: stored[path].version for at, path in zip(sized, paths, strict=True)}
    return Listing(sized, labels, names, ignored, versions)
