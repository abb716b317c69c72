"""`python -m data.resample features.npz --method smote --out resampled.npz`: even out the classes.

On features, not on images: the mean of two images is no image, that of two features is near both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.features import Features
from deploy.errors import LabError

METHODS = ("smote", "adasyn", "borderline", "random_over", "random_under")
_FROM_NEIGHBOURS = ("smote", "adasyn", "borderline")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for a user's mistake, told on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m data.resample",
        description="Even out the classes of a table of features that scripts.features wrote.",
    )
    parser.add_argument("features", type=Path, help="a features.npz")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the new table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--neighbours", type=int, default=5, help="of a row, to make new ones between")
    options = parser.parse_args(argv)
    try:
        before = Features.load(options.features)
        after = resample(before, options.method, options.seed, options.neighbours)
        after.save(options.out)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(before, after))
    return 0


def resample(features: Features, method: str, seed: int, neighbours: int) -> Features:
    """As many rows of each class as the largest has, or for random_under the smallest.

    smote: Chawla et al. 2002; adasyn: He et al. 2008; borderline: Han et al. 2005, kind 1. Raises LabError
    where a class has too few rows for `neighbours`, or imbalanced-learn is missing or finds nothing to do.
    """
    try:
        from imblearn import over_sampling, under_sampling
    except ImportError as error:
        raise LabError(
            "resampling needs imbalanced-learn, which is not installed: pip install imbalanced-learn"
        ) from error
    if neighbours < 1:
        raise LabError(f"--neighbours {neighbours} must be at least 1")
    if method in _FROM_NEIGHBOURS:
        _require_neighbours(features, neighbours)
    samplers: dict[str, Any] = {
        "smote": lambda: over_sampling.SMOTE(random_state=seed, k_neighbors=neighbours),
        "adasyn": lambda: over_sampling.ADASYN(random_state=seed, n_neighbors=neighbours),
        "borderline": lambda: over_sampling.BorderlineSMOTE(random_state=seed, k_neighbors=neighbours),
        "random_over": lambda: over_sampling.RandomOverSampler(random_state=seed),
        "random_under": lambda: under_sampling.RandomUnderSampler(random_state=seed),
    }
    try:
        values, labels = samplers[method]().fit_resample(features.values, features.labels)
    except (ValueError, RuntimeError) as error:
        # ADASYN's, where no rare row has a row of another class nearby.
        raise LabError(f"--method {method} cannot even out these features ({error}): use smote") from error
    return Features(values.astype(np.float32), labels.astype(np.int64), features.class_names, ())


def table(before: Features, after: Features) -> str:
    """Rows of each class before and after."""
    width = max(5, *(len(name) for name in before.class_names))
    lines = [f"{'class':<{width}}  {'before':>8}  {'after':>8}"]
    for name, old, new in zip(before.class_names, before.counts(), after.counts(), strict=True):
        lines.append(f"{name:<{width}}  {old:>8,}  {new:>8,}")
    return "\n".join(lines)


def _require_neighbours(features: Features, neighbours: int) -> None:
    counts = features.counts()
    few = [
        (int(count), name)
        for count, name in zip(counts, features.class_names, strict=True)
        if count <= neighbours and count < counts.max()
    ]
    if few:
        least = min(few)[0]
        remedy = f"--neighbours {least - 1}" if least > 1 else "--method random_over"
        named = ", ".join(f"{name} ({count})" for count, name in sorted(few)[:10])
        raise LabError(
            f"--neighbours {neighbours} needs {neighbours + 1} images of a class, and fewer are in {named}: "
            f"use {remedy}"
        )


if __name__ == "__main__":
    sys.exit(main())
