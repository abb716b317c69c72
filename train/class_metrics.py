"""What is measured of each class, and which figure leads where the classes are not alike.

All of it is exact: curves are of every image's probabilities, not of bins. A value that is not defined (a
class without an image, or with every image) is nan; it never counts as 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

Headline = Literal["top1", "macro_f1"]
HEADLINES: dict[str, str] = {"top1": "top-1", "macro_f1": "macro F1"}
"""How a headline is written."""
MAX_RATIO = 3.0
"""The most that the largest training class may hold against the smallest for accuracy to lead."""
MAX_VALUES = 5_000_000
"""Images x classes above which the curves are computed for the last evaluation only: sorting the scores of
ImageNet's 50,000 x 1,000 takes over a minute of one core."""
MAX_POINTS = 200
"""Of a curve that is kept for drawing."""


@dataclass(frozen=True)
class Scores:
    """Of every image of the split, in the order of its index."""

    labels: Int64
    """[n]"""
    probabilities: Float32
    """[n, classes], rows sum to 1."""


@dataclass(frozen=True)
class ClassMetrics:
    """Each field one value a class, nan where it is not defined."""

    support: Int64
    """Images with the label."""
    precision: Float64
    """nan where the class was never predicted."""
    recall: Float64
    f1: Float64
    """2 TP / (2 TP + FP + FN): 0 for a class with images of which none was found."""
    auc_roc: Float64 | None
    """One against the rest; None where no scores were collected."""
    average_precision: Float64 | None
    """Sum over the thresholds of precision x gain in recall, one against the rest."""

    def means(self) -> dict[str, float]:
        """Unweighted means over the classes where the value is defined, and F1 weighted by support.

        `balanced_accuracy` is the mean recall. The two of the curves are left out where there are none.
        """
        weighted = float(np.nansum(self.f1 * self.support) / self.support.sum())
        found = {
            "macro_f1": _mean(self.f1),
            "weighted_f1": weighted,
            "balanced_accuracy": _mean(self.recall),
        }
        if self.auc_roc is not None and self.average_precision is not None:
            found |= {
                "auc_roc": _mean(self.auc_roc),
                "average_precision": _mean(self.average_precision),
            }
        return found


def headline(class_counts: Int64) -> Headline:
    """The figure that leads, from the training images of each class [classes].

    Accuracy hides a rare class: it does not lead where the counts differ by more than MAX_RATIO to 1.
    """
    return "macro_f1" if class_counts.max() > MAX_RATIO * class_counts.min() else "top1"


def headline_reason(class_counts: Int64) -> str:
    """Why that figure leads, for people."""
    low, high = int(class_counts.min()), int(class_counts.max())
    if headline(class_counts) == "top1":
        return f"top-1 leads: the training classes hold {low:,} to {high:,} images, within {MAX_RATIO:g} to 1"
    return (
        f"macro F1 leads: the training classes hold {low:,} to {high:,} images, over {MAX_RATIO:g} to 1, "
        "and accuracy alone would hide the rare ones"
    )


def class_metrics(confusion: Int64, scores: Scores | None) -> ClassMetrics:
    """From counts [classes, classes], rows labels and columns predictions, and the scores where there are."""
    hits = np.diag(confusion).astype(np.float64)
    support, predicted = confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        precision = hits / predicted
        recall = hits / support
        f1 = np.where(support > 0, 2 * hits / (support + predicted), np.nan)
    auc_roc, average_precision = _areas(scores) if scores is not None else (None, None)
    return ClassMetrics(support, precision, recall, f1, auc_roc, average_precision)


def precision_recall(scores: Scores, label: int) -> tuple[list[float], list[float]]:
    """Recall, rising, and the precision at it, of one class against the rest; MAX_POINTS or fewer.

    Empty where the class has no image.
    """
    from sklearn.metrics import precision_recall_curve

    positive = scores.labels == label
    if not positive.any():
        return [], []
    precision, recall, _ = precision_recall_curve(
        positive, scores.probabilities[:, label], drop_intermediate=True
    )
    precision, recall = precision[::-1], recall[::-1]
    if len(recall) > MAX_POINTS:
        near = np.searchsorted(recall, np.linspace(0, 1, MAX_POINTS))
        kept = np.unique(near)
        precision, recall = precision[kept], recall[kept]
    return recall.round(5).tolist(), precision.round(5).tolist()


def extremes(f1: Float64, most: int, worst: int = 15, best: int = 5) -> list[int]:
    """Classes with the worst F1 first, undefined ones last; where there are more than `most`, the `worst` and
    the `best` alone."""
    order = [int(label) for label in np.argsort(f1, kind="stable")]  # nan sorts last
    if len(order) <= most:
        return order
    defined = [label for label in order if not np.isnan(f1[label])]
    return defined[:worst] + defined[worst:][-best:]


def known(value: float) -> float | None:
    """For JSON, which has no nan: None where the value is not defined."""
    return float(value) if math.isfinite(value) else None


def _areas(scores: Scores) -> tuple[Float64, Float64]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    num_classes = scores.probabilities.shape[1]
    auc_roc, average_precision = np.full((2, num_classes), np.nan)
    for label in range(num_classes):
        positive = scores.labels == label
        if positive.any() and not positive.all():
            auc_roc[label] = roc_auc_score(positive, scores.probabilities[:, label])
            average_precision[label] = average_precision_score(positive, scores.probabilities[:, label])
    return auc_roc, average_precision


def _mean(values: Float64) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
