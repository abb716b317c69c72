"""What a finished run leaves of its last evaluation: every image's probabilities, and a small table of the
classes for the report. Each file appears complete or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data.prepare import Splits
from train.class_metrics import extremes, headline, headline_reason, known, precision_recall
from train.metrics import EvalResult

PREDICTIONS = "predictions.npz"
CLASSES = "classes.json"
MAX_CURVES = 20
MAX_CONFUSION = 200
"""Classes above which the matrix stays out of classes.json: it would be megabytes."""


def write_predictions(run_dir: Path, result: EvalResult, splits: Splits) -> None:
    """predictions.npz: `paths` str [n], `labels` int64 [n], `probabilities` float32 [n, classes],
    `class_names` str [classes]; the rows are those of the validation index."""
    scores, val = result.scores, splits.val
    assert scores is not None
    assert np.array_equal(scores.labels, val.labels), "the scores are not in the order of the index"

    def write(file: BinaryIO) -> None:
        np.savez(
            file,
            paths=np.array(val.paths, dtype=np.str_),
            labels=scores.labels,
            probabilities=scores.probabilities,
            class_names=np.array(val.class_names, dtype=np.str_),
        )

    _write_whole(run_dir / PREDICTIONS, write)


def write_classes(run_dir: Path, result: EvalResult, splits: Splits, step: int, epoch: int) -> None:
    """classes.json: the headline and why, the means, a record a class, the confusion matrix and some curves.

    Undefined values are null. Curves of MAX_CURVES classes, beyond that of the worst and best F1.
    """
    classes, scores, names = result.classes, result.scores, splits.val.class_names
    assert scores is not None
    assert classes.auc_roc is not None
    assert classes.average_precision is not None
    counts = np.bincount(splits.train.labels, minlength=len(names))
    table = [
        {
            "name": name,
            "train": int(counts[label]),
            "val": int(classes.support[label]),
            "precision": known(classes.precision[label]),
            "recall": known(classes.recall[label]),
            "f1": known(classes.f1[label]),
            "auc_roc": known(classes.auc_roc[label]),
            "average_precision": known(classes.average_precision[label]),
        }
        for label, name in enumerate(names)
    ]
    curves = []
    for label in extremes(classes.f1, MAX_CURVES):
        recall, precision = precision_recall(scores, label)
        curves.append({"name": names[label], "recall": recall, "precision": precision})
    content: dict[str, Any] = {
        "step": step,
        "epoch": epoch,
        "num_images": result.num_images,
        "headline": headline(counts),
        "reason": headline_reason(counts),
        "values": {name: known(value) for name, value in result.values.items()},
        "classes": table,
        "confusion": result.confusion.tolist() if len(names) <= MAX_CONFUSION else None,
        "pr_curves": curves,
    }
    text = json.dumps(content, allow_nan=False)
    _write_whole(run_dir / CLASSES, lambda file: file.write(text.encode()))


def _write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
