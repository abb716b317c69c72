"""Cross-validation: a run for each fold, then what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from configs.load import SweepJob
from configs.schema import TrainConfig
from data.prepare import Splits
from deploy.errors import LabError
from train.result import Result, keep_result, write_json
from train.sweep import collect, open_sweep_dir, print_table, require_all, run_jobs, say, with_advice

NAME = "cv.json"
PREDICTIONS = "predictions.npz"


def cross_validate(config: TrainConfig, overrides: Sequence[str]) -> None:
    """Train and evaluate every fold in run_dir/fold-N, and write run_dir/cv.json.

    It holds each metric's mean, standard deviation (n - 1) and values by fold, and, where every fold has left
    its predictions, the out-of-fold confusion. Raises LabError, and SystemExit(1) that names the folds that
    have no result.
    """
    jobs = [
        SweepJob(
            f"fold-{fold}", replace(config, cv=replace(config.cv, fold=fold)), (*overrides, f"cv.fold={fold}")
        )
        for fold in range(config.cv.folds)
    ]
    folder = open_sweep_dir(jobs)
    with_advice(folder, partial(run_jobs, folder, jobs))
    results = collect(folder, jobs)
    if len(results) < len(jobs):
        print_table(folder.name, {job.name: results.get(job.name) for job in jobs})
    require_all(folder, jobs, results)
    summary = summarize(results)
    means = {name: values["mean"] for name, values in summary.items()}
    out_of_fold = read_out_of_fold([folder / job.name for job in jobs])
    write_json(
        folder / NAME,
        {
            "folds": len(jobs),
            "stratified": config.cv.stratified,
            "metrics": summary,
            "out_of_fold": out_of_fold,
        },
    )
    keep_result(folder, Result(config, means))
    deviations = {name: values["std"] for name, values in summary.items()}
    print_table(folder.name, {**results, "mean": means, "standard deviation": deviations})
    if out_of_fold is None:
        say(f"not every fold has {PREDICTIONS}: {NAME} is without the out-of-fold confusion")


def summarize(results: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """For every metric that each fold has: mean, std (n - 1), folds."""
    folds = list(results.values())
    columns = {name: [fold[name] for fold in folds] for name in folds[0] if all(name in f for f in folds)}
    return {
        name: {"mean": mean(values), "std": stdev(values), "folds": values}
        for name, values in columns.items()
    }


def read_out_of_fold(run_dirs: Sequence[Path]) -> dict[str, Any] | None:
    """Each image judged by the network that has not seen it: num_images, top1, class_names, confusion (rows
    are labels, columns predictions), and precision, recall, f1 and support of each class; null where a class
    has no prediction or no image. None where a folder has no predictions.

    Raises LabError where an image is in two folds.
    """
    files = [run_dir / PREDICTIONS for run_dir in run_dirs]
    if not all(file.exists() for file in files):
        return None
    paths: list[str] = []
    labels, predicted = [], []
    for file in files:
        with np.load(file, allow_pickle=False) as table:
            paths += table["paths"].tolist()
            labels.append(table["labels"])
            predicted.append(table["probabilities"].argmax(1))
    if len(set(paths)) < len(paths):
        raise LabError(
            f"{len(paths) - len(set(paths))} images are in more than one fold's {PREDICTIONS}: "
            "these are no folds of one cross-validation; start it anew in another run_dir"
        )
    class_names = Splits.load(run_dirs[0] / "data").val.class_names
    confusion = np.zeros((len(class_names), len(class_names)), np.int64)
    np.add.at(confusion, (np.concatenate(labels), np.concatenate(predicted)), 1)
    hits, support, chosen = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return {
        "num_images": len(paths),
        "top1": float(hits.sum() / len(paths)),
        "class_names": class_names,
        "confusion": confusion.tolist(),
        "classes": {
            name: {
                "precision": _share(hits[i], chosen[i]),
                "recall": _share(hits[i], support[i]),
                "f1": _share(2 * hits[i], chosen[i] + support[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(class_names)
        },
    }


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None
