"""A CSV file with a line an image: path, label and, where there are such columns, split, weight and group.

What is missing is dropped or filled in only where the config says so, and counted in the log; what
contradicts itself is an error. All mistakes of a kind are in one error, with their lines.
"""

from __future__ import annotations

import csv
import math
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.images import ManifestConfig
from data.folder import Listing
from data.folds import held_out
from deploy.errors import LabError

_MISSING = frozenset({"", "nan", "na", "null"})
_SHOWN = 20


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    label: str | None
    split: str | None
    weight: float | None
    group: str | None

    def __str__(self) -> str:
        return f"line {self.line}: {self.path}"


def read_manifest(config: ManifestConfig) -> tuple[Listing, Listing]:
    """Training and validation images of the manifest. Nothing but the manifest is opened.

    Raises LabError for a manifest that cannot be read, contradicts itself, or lacks what a policy does not
    allow to be missing.
    """
    file = Path(config.root, config.csv)
    rows, columns, notes = _read(config, file)
    rows, duplicates = _without_duplicates(rows, file)
    notes.append(f"{file}: {len(rows) + duplicates} rows, {duplicates} exact duplicates dropped")
    unlabelled = {row.line for row in rows if row.label is None}
    gone = {row.line for row in rows if not os.path.isfile(row.path)}
    # A weight says how often to train on an image, so validation needs none.
    unweighted = {r.line for r in rows if "weight" in columns and r.weight is None and r.split != "val"}
    lost: list[str] = []
    for what, policy, lines in (
        ("label", config.on_missing_label, unlabelled),
        ("file", config.on_missing_file, gone),
        ("weight", config.on_missing_weight, unweighted),
    ):
        if lines and policy == "stop":
            lost.append(
                _list(
                    f"{len(lines)} of {len(rows)} rows have no {what}", [r for r in rows if r.line in lines]
                )
                + f"\n  mend them, or give data.on_missing_{what}=drop or data.on_missing_{what}=impute"
            )
    if lost:
        raise LabError(f"{file}:\n" + "\n".join(lost))
    dropped = set[int]()
    for policy, lines in ((config.on_missing_label, unlabelled), (config.on_missing_file, gone)):
        dropped |= lines if policy == "drop" else set()
    rows = _impute_labels([row for row in rows if row.line not in dropped], file)
    rows = _split(rows, config.val_fraction, file)
    if config.on_missing_weight == "drop":
        # Those that the cut has made validation images stay.
        dropped |= {row.line for row in rows if row.line in unweighted and row.split == "train"}
        rows = [row for row in rows if row.line not in dropped]
    rows = _impute_files(rows, gone, file)
    if "weight" in columns:
        rows = _impute_weights(rows, file)
    for what, lines in (("label", unlabelled), ("file", gone), ("weight", unweighted)):
        filled = Counter(row.split for row in rows if row.line in lines)
        if what == "weight":
            del filled["val"]
        if lines:
            notes.append(
                f"missing {what}s: {len(lines)} rows, {len(lines & dropped)} dropped, "
                f"{filled['train']} training and {filled['val']} validation images imputed"
            )
    names = tuple(sorted({str(row.label) for row in rows}))
    if len(names) < 2:
        raise LabError(f"{file} has the classes {list(names)}: a classifier needs at least two")
    train, val = (
        Listing(
            [row.path for row in rows if row.split == split],
            [names.index(str(row.label)) for row in rows if row.split == split],
            names,
            Counter(),
        )
        for split in ("train", "val")
    )
    weights = [1.0 if row.weight is None else row.weight for row in rows if row.split == "train"]
    return replace(train, weights=weights if "weight" in columns else None, notes=notes), val


def _read(config: ManifestConfig, file: Path) -> tuple[list[_Row], set[str], list[str]]:
    """Rows, the columns there are, and notes about those that there are not."""
    if not file.is_file():
        raise LabError(
            f"no manifest {file}: give data.root=FOLDER and data.csv=FILE, in that folder or a whole path"
        )
    base = file.parent if config.relative_to == "csv" else Path(config.root)
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text)
            header = [name.strip() for name in next(reader, [])]
            where, notes = _columns(config, header, file)
            rows, problems = [], []
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    problems.append(
                        f"line {reader.line_num}: {len(cells)} cells, the header has {len(header)}"
                    )
                    continue
                named = {column: cells[at].strip() for column, at in where.items()}
                row, wrong = _parse(named, reader.line_num, base)
                problems += wrong
                rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise LabError(f"{file} cannot be read as CSV in UTF-8 ({error}): save it anew as that") from None
    if any(row.split for row in rows):
        problems += [f"line {row.line}: no split; give train or val" for row in rows if row.split is None]
    if problems:
        raise LabError(_list(f"{file} has {len(problems)} mistakes", problems))
    if not rows:
        raise LabError(f"{file} has a header and no rows: give a line an image")
    return rows, set(where), notes


def _columns(config: ManifestConfig, header: Sequence[str], file: Path) -> tuple[dict[str, int], list[str]]:
    wanted = {key: getattr(config.columns, key) for key in ("path", "label", "split", "weight", "group")}
    where: dict[str, int] = {}
    problems, notes = [], []
    for key, name in wanted.items():
        alike = [there for there in header if there.casefold() == name.casefold()]
        if header.count(name) == 1:
            where[key] = header.index(name)
        elif alike or key in ("path", "label"):
            problems.append(
                f"one column {name!r} is needed, there are {alike or 'none'}: data.columns.{key}=NAME"
            )
        else:
            notes.append(f"{file} has no column {name!r} (data.columns.{key})")
    if problems:
        hint = "; separate the columns by commas" if len(header) == 1 else ""
        raise LabError(_list(f"the header of {file} is {list(header)}{hint}", problems))
    return where, notes


def _parse(cells: dict[str, str], line: int, base: Path) -> tuple[_Row, list[str]]:
    def value(key: str) -> str | None:
        text = cells.get(key, "")
        return None if text.casefold() in _MISSING else text

    problems = []
    path, split, text = value("path"), value("split"), value("weight")
    if path is None:
        problems.append(f"line {line}: no path")
    if split not in (None, "train", "val"):
        problems.append(f"line {line}: split {split!r}; give train or val")
    try:
        weight = None if text is None else float(text)
    except ValueError:
        weight = math.inf
    if weight is not None and not 0 <= weight < math.inf:
        problems.append(f"line {line}: weight {text!r}; give a number of at least 0")
    whole = os.path.normpath(base / (path or ""))
    return _Row(line, whole, value("label"), split, weight, value("group")), problems


def _without_duplicates(rows: list[_Row], file: Path) -> tuple[list[_Row], int]:
    """The first of rows that say the same of one file, and how many were left out."""
    first: dict[str, _Row] = {}
    problems = []
    for row in rows:
        before = first.setdefault(row.path, row)
        differences = [
            f"{key} {getattr(before, key)!r} and {getattr(row, key)!r}"
            for key in ("label", "split", "weight", "group")
            if getattr(before, key) != getattr(row, key)
        ]
        if differences:
            problems.append(f"lines {before.line} and {row.line}: {row.path}: {', '.join(differences)}")
    if problems:
        title = f"{file} contradicts itself about {len(problems)} files; keep one line for each"
        raise LabError(_list(title, problems))
    return list(first.values()), len(rows) - len(first)


def _impute_labels(rows: list[_Row], file: Path) -> list[_Row]:
    """A missing label is the most frequent one of its group; of equally frequent ones the first by name."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.group is not None and row.label is not None:
            groups[row.group][row.label] += 1
    hopeless = [row for row in rows if row.label is None and row.group not in groups]
    if hopeless:
        raise LabError(
            _list(
                f"{file}: {len(hopeless)} labels cannot be imputed: no row of their group has one", hopeless
            )
            + "\nlabel one image of each such group (data.columns.group), or give data.on_missing_label=drop"
        )
    likely = {
        group: min(counts, key=lambda label: (-counts[label], label)) for group, counts in groups.items()
    }
    return [replace(row, label=likely[str(row.group)]) if row.label is None else row for row in rows]


def _split(rows: list[_Row], val_fraction: float, file: Path) -> list[_Row]:
    """With a split for every row: the manifest's, or one that is cut."""
    if not rows:
        raise LabError(f"{file}: no row is left after dropping those with something missing")
    if rows[0].split is not None:
        return rows
    names = tuple(sorted({str(row.label) for row in rows}))
    labels = np.array([names.index(str(row.label)) for row in rows], np.int64)
    cut = held_out(labels, names, val_fraction).tolist()
    return [replace(row, split="val" if out else "train") for row, out in zip(rows, cut, strict=True)]


def _impute_files(rows: list[_Row], gone: set[int], file: Path) -> list[_Row]:
    """In a missing file's place stands another image of its class and split: they take turns, by line."""
    there: dict[Any, list[str]] = defaultdict(list)
    for row in rows:
        if row.line not in gone:
            there[row.label, row.split].append(row.path)
    hopeless = [row for row in rows if (row.label, row.split) not in there]
    if hopeless:
        raise LabError(
            _list(
                f"{file}: {len(hopeless)} missing files have no other image of their class and split",
                hopeless,
            )
            + "\nadd such images, or give data.on_missing_file=drop"
        )
    turns: Counter[Any] = Counter()

    def filled() -> Iterator[_Row]:
        for row in rows:
            if row.line in gone:
                key = row.label, row.split
                yield replace(row, path=there[key][turns[key] % len(there[key])])
                turns[key] += 1
            else:
                yield row

    return list(filled())


def _impute_weights(rows: list[_Row], file: Path) -> list[_Row]:
    """A missing weight of a training image is the median of its class's."""
    known: dict[str | None, list[float]] = defaultdict(list)
    for row in rows:
        if row.split == "train" and row.weight is not None:
            known[row.label].append(row.weight)
    train = [row for row in rows if row.split == "train"]
    hopeless = [row for row in train if row.weight is None and row.label not in known]
    if hopeless:
        raise LabError(
            _list(
                f"{file}: {len(hopeless)} weights cannot be imputed: no image of their class has one",
                hopeless,
            )
            + "\nweigh one image of each class, or give data.on_missing_weight=drop"
        )
    medians = {label: statistics.median(weights) for label, weights in known.items()}
    return [
        replace(row, weight=medians[row.label]) if row.weight is None and row.split == "train" else row
        for row in rows
    ]


def _list(title: str, items: Sequence[object]) -> str:
    shown = "".join(f"\n  - {item}" for item in items[:_SHOWN])
    more = f"\n  ... and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{title}:{shown}{more}"
