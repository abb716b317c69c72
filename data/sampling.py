"""Which images an epoch has, and how often each: a pure function of (seed, epoch), whatever the ranks.

The order is not decided here: `epoch_rows` gives a multiset of rows, `data.plan` arranges it. An epoch has
the same length throughout a run. Draws within a class are systematic (Madow 1949): its images stand in a
circle, in an order of the seed, and each epoch goes on where the last one stopped, so that no image is used
twice before all have been used once.
"""

from __future__ import annotations

import numpy as np

from configs.images import SamplingConfig, ShuffleConfig, WeightedConfig
from data.draws import draws
from data.index import Float64, Index, Int64
from deploy.errors import LabError

SHUFFLE = ShuffleConfig("shuffle")

_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, fill the unit interval evenly however many there are."""
_SHOWN = 20


def epoch_rows(config: SamplingConfig, index: Index, seed: int, epoch: int) -> Int64:
    """Rows of the index that make up the epoch, int64 [m], ascending; a row is there as often as it is used.

    m is the same in every epoch. Raises LabError that lists every mistake in the weights.
    """
    n = len(index)
    if config.name == "shuffle":
        return np.arange(n)
    if config.name == "bootstrap":
        # Efron 1979. The same in every epoch: the seed names the bag.
        return np.sort(draws(seed, 0, 0, "sampling").integers(0, n, n))
    sizes = np.bincount(index.labels, minlength=len(index.class_names))
    weights = np.ones(n)
    present = sizes > 0
    if config.name == "over":
        quotas = present * float(sizes.max())
    elif config.name == "under":
        quotas = present * float(sizes[present].min())
    elif config.name == "balanced":
        quotas = present * (n / present.sum())
    else:
        weights = _image_weights(config, index, sizes)
        totals = np.bincount(index.labels, weights, len(sizes))
        quotas = totals * (n / float(totals.sum()))
    counts = _counts(np.asarray(quotas, np.float64), seed, epoch)
    firsts, now = counts[:-1].sum(axis=0), counts[-1]
    by_class = np.split(np.argsort(index.labels, kind="stable"), np.cumsum(sizes)[:-1])
    return np.sort(
        np.concatenate(
            [
                _go_round(members, weights[members], int(firsts[label]), int(now[label]), seed, label)
                for label, members in enumerate(by_class)
                if len(members)
            ]
        )
    )


def sampling_lines(config: SamplingConfig, index: Index, seed: int) -> list[str]:
    """Images of each class before and after, for the log; none where every image is used once."""
    if config.name == "shuffle":
        return []
    rows = epoch_rows(config, index, seed, 0)
    classes = len(index.class_names)
    before = np.bincount(index.labels, minlength=classes)
    after = np.bincount(index.labels[rows], minlength=classes)
    used = np.bincount(index.labels[np.unique(rows)], minlength=classes)
    lines = [
        f"sampling={config.name}: {len(rows)} images an epoch of the {len(index)} there are, "
        f"{used.sum()} different ones in the first"
    ]
    most_changed = np.argsort(-np.abs(np.log((after + 0.5) / (before + 0.5))), kind="stable")
    lines += [
        f"  {index.class_names[c]}: {before[c]} -> {after[c]} ({used[c]} different)"
        for c in (most_changed[:_SHOWN] if classes > _SHOWN else range(classes))
    ]
    if classes > _SHOWN:
        lines.append(
            f"  and {classes - _SHOWN} more classes, which change less: "
            f"{after.min()} to {after.max()} images each, {before.min()} to {before.max()} before"
        )
    return lines


def _image_weights(config: WeightedConfig, index: Index, sizes: Int64) -> Float64:
    """Relative weight of each image: that of its class, times that of its class's size, times its own."""
    problems = []
    of_class = np.ones(len(sizes))
    if config.weights is not None:
        names = index.class_names
        problems += [f"{name!r} is no class" for name in sorted(config.weights.keys() - set(names))]
        problems += [f"class {name!r} has no weight" for name in names if name not in config.weights]
        of_class = np.array([config.weights.get(name, 1.0) for name in names])
    own = np.ones(len(index)) if index.weights is None else index.weights
    weights: Float64 = (of_class * np.maximum(sizes, 1.0) ** -config.power)[index.labels] * own
    totals = np.bincount(index.labels, weights, len(sizes))
    absent = {name for name, size in zip(index.class_names, sizes, strict=True) if size == 0}
    problems += [
        f"all images of class {name!r} have the weight 0"
        for name, total in zip(index.class_names, totals, strict=True)
        if total == 0 and name not in absent
    ]
    if problems:
        raise LabError(
            "sampling=weighted does not fit the training images:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
            + "\ngive sampling.weights one positive number a class, or null to weight by sampling.power alone"
        )
    return weights


def _counts(quotas: Float64, seed: int, epoch: int) -> Int64:
    """Whole images of each class in the epochs 0 to `epoch` [epoch + 1, classes].

    Each is within one of its quota and every row has the quotas' sum. The rounding moves on from epoch to
    epoch, so that in the long run the shares are the quotas themselves.
    """
    borders = np.concatenate([[0.0], np.cumsum(quotas)])
    borders[-1] = round(borders[-1])
    phases = (draws(seed, 0, 1, "sampling").random() + np.arange(epoch + 1) * _GOLDEN) % 1
    counts: Int64 = np.diff(np.floor(borders + phases[:, None]), axis=1).astype(np.int64)
    return counts


def _go_round(members: Int64, weights: Float64, first: int, count: int, seed: int, label: int) -> Int64:
    """Draws `first` to `first + count` of a class: n steps round the circle of its n images are one turn.

    An image covers an arc as long as its weight, of mean 1. Each turn starts at another phase, so that an arc
    shorter than a step is met in its share of the turns; equal weights are one image a step.
    """
    n = len(members)
    order = draws(seed, 0, 2 + label, "sampling").permutation(n)
    ends = np.cumsum(weights[order])
    ends *= n / ends[-1]
    turn, step = np.divmod(np.arange(first, first + count), n)
    at = np.searchsorted(ends, step + (0.5 + turn * _GOLDEN) % 1, side="right")
    rows: Int64 = members[order[np.minimum(at, n - 1)]]
    return rows
