"""Cross-validation: all images of a data set, dealt out anew."""

from __future__ import annotations

import numpy as np

from data.index import Index
from data.prepare import Splits


def resplit(splits: Splits, folds: int, fold: int, stratified: bool, seed: int) -> Splits:
    """The images of both splits as `folds` parts that differ by one image at most (for each class, where
    `stratified`); part `fold` is for validation. A pure function of its arguments."""
    both = (splits.train, splits.val)
    index = Index(
        tuple(path for split in both for path in split.paths),
        np.concatenate([split.labels for split in both]),
        np.concatenate([split.shapes for split in both]),
        splits.train.class_names,
    )
    order = np.random.default_rng(seed).permutation(len(index))
    if stratified:
        order = order[np.argsort(index.labels[order], kind="stable")]
    part = np.empty(len(index), np.int64)
    part[order] = np.arange(len(index)) % folds
    return Splits(index.take(np.flatnonzero(part != fold)), index.take(np.flatnonzero(part == fold)))
