"""Other cuts of the same images: held out, folds of a cross-validation, a share for a learning curve."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data.index import Index, Int64
from deploy.errors import LabError


def held_out(labels: Int64, class_names: tuple[str, ...], val_fraction: float) -> npt.NDArray[np.bool_]:
    """Hold out a share of every class [n], at least one image and never all; the same images each time.

    Raises LabError where a class has one image only.
    """
    sizes = np.bincount(labels, minlength=len(class_names))
    rare = [name for name, size in zip(class_names, sizes, strict=True) if size == 1]
    if rare:
        raise LabError(f"classes with one image only cannot be split: {rare[:10]}; add images or remove them")
    shuffled = np.random.default_rng(0).permutation(len(labels))
    out = np.zeros(len(labels), np.bool_)
    for label, size in enumerate(sizes):
        count = min(max(1, round(size * val_fraction)), size - 1)
        out[shuffled[labels[shuffled] == label][:count]] = True
    return out


def fold(index: Index, folds: int, number: int, stratified: bool, seed: int) -> tuple[Int64, Int64]:
    """Rows to train on and to validate on, ascending, of fold `number` (from 0) of `folds`.

    Over all numbers every row is validated on once. By scikit-learn's KFold or StratifiedKFold, shuffled by
    the seed. Raises LabError where the numbers make no folds, or where a class has fewer images than folds.
    """
    if not 2 <= folds <= len(index) or not 0 <= number < folds:
        raise LabError(
            f"fold {number} of {folds} folds over {len(index)} images: "
            f"give 2 to {len(index)} folds and a fold from 0 to folds - 1"
        )
    if stratified:
        sizes = np.bincount(index.labels, minlength=len(index.class_names))
        rare = [
            f"{name} ({size})" for name, size in zip(index.class_names, sizes, strict=True) if size < folds
        ]
        if rare:
            raise LabError(
                f"{len(rare)} classes have fewer images than the {folds} folds: {', '.join(rare[:10])}"
                f"{', ...' if len(rare) > 10 else ''}; use fewer folds, add images, or do not stratify"
            )
    # A second of imports that a run without folds does not pay.
    from sklearn.model_selection import KFold, StratifiedKFold

    cutter = (StratifiedKFold if stratified else KFold)(folds, shuffle=True, random_state=seed)
    train, val = list(cutter.split(index.labels, index.labels))[number]
    return train.astype(np.int64), val.astype(np.int64)


def subset(index: Index, fraction: float, seed: int) -> Index:
    """A share of the images in which the classes keep their shares: each at least one image.

    A larger fraction of the same seed holds all that a smaller one does, so that a learning curve grows.
    `fraction` is above 0 and at most 1; LabError otherwise.
    """
    if not 0 < fraction <= 1:
        raise LabError(f"fraction {fraction:g} of the training images: give a number above 0, at most 1")
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(len(index))
    kept = []
    for label in range(len(index.class_names)):
        members = shuffled[index.labels[shuffled] == label]
        kept.append(members[: max(1, round(len(members) * fraction))])
    return index.take(np.sort(np.concatenate(kept)))
