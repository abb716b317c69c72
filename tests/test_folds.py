"""Folds cover every image once, and a share keeps the shares of the classes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from data.folds import fold, subset
from data.index import Index, concatenate
from data.prepare import Splits, resplit
from deploy.errors import LabError

NAMES = ("cat", "dog", "hen")


def index(sizes: tuple[int, ...] = (30, 20, 10), first: int = 0) -> Index:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), sizes))
    n = len(labels)
    return Index(tuple(f"{first + i}.jpg" for i in range(n)), labels, np.full((n, 2), 40), NAMES)


def counts(images: Index) -> list[int]:
    found: list[int] = np.bincount(images.labels, minlength=3).tolist()
    return found


@pytest.mark.parametrize("stratified", [True, False])
def test_every_image_is_validated_on_once(stratified: bool) -> None:
    cuts = [fold(index(), 5, number, stratified, 7) for number in range(5)]
    assert sorted(np.concatenate([val for _, val in cuts]).tolist()) == list(range(60))
    for train, val in cuts:
        assert sorted([*train.tolist(), *val.tolist()]) == list(range(60))
        assert train.dtype == val.dtype == np.int64
        assert not stratified or counts(index().take(val)) == [6, 4, 2]
    again = fold(index(), 5, 2, stratified, 7)
    assert all(np.array_equal(a, b) for a, b in zip(again, cuts[2], strict=True))
    assert not np.array_equal(fold(index(), 5, 2, stratified, 8)[1], cuts[2][1])


def test_a_class_with_fewer_images_than_folds_is_refused_with_its_count() -> None:
    with pytest.raises(LabError, match=r"2 classes have fewer images than the 7 folds: dog \(5\), hen \(2\)"):
        fold(index((9, 5, 2)), 7, 0, True, 0)
    assert len(fold(index((9, 5, 2)), 7, 0, False, 0)[1]) == 3


@pytest.mark.parametrize(("folds", "number"), [(1, 0), (5, 5), (5, -1), (61, 0)])
def test_numbers_that_make_no_folds_are_refused(folds: int, number: int) -> None:
    with pytest.raises(LabError, match="give 2 to 60 folds"):
        fold(index(), folds, number, True, 0)


def test_a_new_cut_joins_both_splits_and_has_no_image_on_both_sides() -> None:
    train = replace(index(first=0), weights=np.full(60, 2.0))
    train = concatenate(train, train.take(np.array([3, 3])))  # two stand in for missing files
    splits = Splits(train, index((6, 6, 6), first=100))
    seen: list[str] = []
    for number in range(4):
        cut = resplit(splits, 4, number, True, 0)
        assert not set(cut.train.paths) & set(cut.val.paths)
        assert len(cut.train) + len(cut.val) == 78
        seen += cut.val.paths
        assert cut.train.weights is not None
        old = np.array([int(path.removesuffix(".jpg")) < 100 for path in cut.train.paths])
        assert cut.train.weights.tolist() == np.where(old, 2.0, 1.0).tolist()
    assert sorted(seen) == sorted(index().paths + splits.val.paths)


def test_a_share_is_stratified_and_grows() -> None:
    shares = [subset(index(), fraction, 0) for fraction in (0.01, 0.1, 0.5, 1.0)]
    assert [counts(share) for share in shares] == [[1, 1, 1], [3, 2, 1], [15, 10, 5], [30, 20, 10]]
    for small, large in pairwise(shares):
        assert set(small.paths) <= set(large.paths)
    assert shares[-1].paths == index().paths
    assert subset(index(), 0.5, 1).paths != shares[2].paths
    for fraction in (0.0, 1.1, float("nan")):
        with pytest.raises(LabError, match="above 0, at most 1"):
            subset(index(), fraction, 0)
