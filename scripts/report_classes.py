"""The report's sections about the classes and about cross-validation."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from scripts import report_class_figures as plots
from scripts.report_figures import Figure
from scripts.report_html import card, note, plot_cards, table, tr
from train.class_metrics import HEADLINES, extremes

MOST_ROWS = 30
NAMES = {
    **HEADLINES,
    "top5": "top-5",
    "weighted_f1": "weighted F1",
    "balanced_accuracy": "balanced accuracy",
    "auc_roc": "AUC-ROC",
    "average_precision": "average precision",
    "loss": "loss",
}
_COLUMNS = ("precision", "recall", "f1", "auc_roc", "average_precision")


def figures(classes: dict[str, Any] | None, cv: dict[str, Any] | None, run: int) -> dict[str, Figure | None]:
    """The plots of run number `run`, by the names that `section` and `cross_validation` give them."""
    found: dict[str, Figure | None] = {}
    if classes is not None:
        rows = classes["classes"]
        found[f"pr-{run}"] = plots.pr_curves(classes["pr_curves"])
        found[f"confusion-{run}"] = plots.confusion(classes["confusion"], [row["name"] for row in rows])
        found[f"frequencies-{run}"] = plots.frequencies([rows[label] for label in _shown(rows)])
    if cv is not None:
        found[f"cv-confusion-{run}"] = plots.confusion(cv.get("confusion"), cv.get("class_names") or [])
    return found


def headline_cards(classes: dict[str, Any] | None) -> str:
    """The trained network's figures with macro F1 first and the reason; empty where top-1 leads as ever."""
    if classes is None or classes["headline"] == "top1":
        return ""
    beside = {
        "macro_f1": "the mean over the classes",
        "top1": "the share of all images, mostly common ones",
        "balanced_accuracy": "the mean recall of the classes",
        "average_precision": "the mean over the classes",
    }
    cards = [card(_capital(NAMES[name]), *_percent(classes, name), below) for name, below in beside.items()]
    return f'<div class="figures">{"".join(cards)}</div>{note(_capital(classes["reason"]) + ".")}'


def section(
    classes: dict[str, Any], label: str, drawn: Mapping[str, Figure | None], run: int, alone: bool
) -> str:
    """A table of the classes, worst F1 first, and its plots."""
    rows = classes["classes"]
    shown = _shown(rows)
    hint = f"The last evaluation, {classes['num_images']:,} images. {_capital(classes['reason'])}."
    if len(shown) < len(rows):
        hint += f" The 15 worst and the 5 best of {len(rows):,} classes by F1; predictions.npz holds all."
    head = ["class", "training<br>images", "validation<br>images", "precision", "recall", "F1", "AUC-ROC",
            "average<br>precision"]  # fmt: skip
    lines = []
    for i in shown:
        row = rows[i]
        counts = [f"{row['train']:,}", f"{row['val']:,}"]
        lines.append(tr([escape(row["name"]), *counts, *(_cell(row[column]) for column in _COLUMNS)]))
    # A mean over the classes of precision is not among the values, and would say little.
    values = classes["values"]
    means = ["mean of the classes", "", "", "", _cell(values["balanced_accuracy"]), _cell(values["macro_f1"]),
             _cell(values.get("auc_roc")), _cell(values.get("average_precision"))]  # fmt: skip
    lines.insert(0, tr(means))
    title = "Classes" if alone else f"Classes: {escape(label)}"
    missing = "" if classes["confusion"] is not None else note(
        f"The confusion matrix of {len(rows):,} classes is not drawn; predictions.npz has what it takes."
    )  # fmt: skip
    curves = "Each class against the rest" + (
        ", the classes of the worst and best F1." if len(classes["pr_curves"]) < len(rows) else "."
    )
    panels = [
        (f"pr-{run}", "Precision and recall", curves),
        (f"confusion-{run}", "Confusion", "Share of each label's images; names and numbers on hover."),
    ]
    frequencies = [(f"frequencies-{run}", "How many images, how well", "The commonest class first.")]
    return (
        f'<section><h2>{title}</h2><p class="hint">{escape(hint)}</p>'
        f"{table(head, lines)}{missing}</section>"
        + plot_cards(drawn, panels, "grid")
        + plot_cards(drawn, frequencies, "")
    )


def cross_validation(
    cv: dict[str, Any], label: str, drawn: Mapping[str, Figure | None], run: int, alone: bool
) -> str:
    """Mean and standard deviation of each figure over the folds, and the out-of-fold confusion."""
    head = ["figure", "mean", "standard<br>deviation", "of each fold"]
    lines = []
    for name, found in cv["metrics"].items():
        form = _plain if name == "loss" else _cell
        folds = ", ".join(form(value) for value in found["values"])
        cells = [escape(NAMES.get(name, name)), form(found["mean"]), form(found["std"]), folds]
        lines.append(tr(cells))
    title = "Cross-validation" if alone else f"Cross-validation: {escape(label)}"
    hint = f"{cv['folds']} folds; every image is in the validation part of exactly one."
    panels = [(f"cv-confusion-{run}", "Confusion, out of fold", "By the network that never saw the image.")]
    return f'<section><h2>{title}</h2><p class="hint">{hint}</p>{table(head, lines)}</section>' + plot_cards(
        drawn, panels, ""
    )


def _shown(rows: list[dict[str, Any]]) -> list[int]:
    return extremes(np.array([np.nan if row["f1"] is None else row["f1"] for row in rows]), MOST_ROWS)


def _percent(classes: dict[str, Any], name: str) -> tuple[str, str]:
    value = classes["values"].get(name)
    return ("-", "") if value is None else (f"{100 * value:.2f}", "%")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
