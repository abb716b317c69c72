"""A manifest becomes two splits; what is missing stops, is dropped or is filled in, as the config says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.images import ColumnsConfig, ManifestConfig
from configs.load import load
from configs.schema import TrainConfig
from data.index import Index
from data.prepare import Splits, prepare
from data.sampling import epoch_rows
from deploy.errors import LabError
from tests.pictures import save

Write = Callable[..., ManifestConfig]


@pytest.fixture(scope="module")
def shipped() -> ManifestConfig:
    config = load("train", TrainConfig, ["data=manifest", "data.root=r"]).data
    assert isinstance(config, ManifestConfig)
    return config


@pytest.fixture
def write(shipped: ManifestConfig, tmp_path: Path) -> Write:
    """Images 0.png to 9.png and a manifest with these lines."""
    for n in range(10):
        save(tmp_path / f"{n}.png", 8, 9, seed=n)

    def writer(*lines: str, **changes: Any) -> ManifestConfig:
        (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return replace(shipped, root=str(tmp_path), cache_dir=str(tmp_path / "cache"), **changes)

    return writer


def prepared(config: ManifestConfig) -> tuple[Splits, str]:
    said: list[str] = []
    return prepare(config, Path(config.root, "run"), said.append), "\n".join(said)


def refusal(config: ManifestConfig) -> str:
    with pytest.raises(LabError) as caught:
        prepare(config, Path(config.root, "run"))
    return str(caught.value)


def table(index: Index) -> list[tuple[str, str]]:
    names = (index.class_names[label] for label in index.labels.tolist())
    return [(Path(path).name, name) for path, name in zip(index.paths, names, strict=True)]


FULL = [
    "path,label,split,weight,group",
    "0.png,cat,train,1,a",
    "1.png,cat,train,3,a",
    "2.png,dog,train,2,b",
    "3.png,dog,train,5,b",
    "4.png,cat,val,,a",
    "5.png,dog,val,,b",
]


def test_rows_become_splits_with_weights(write: Write) -> None:
    splits, said = prepared(write(*FULL, FULL[1]))
    assert table(splits.train) == [("0.png", "cat"), ("1.png", "cat"), ("2.png", "dog"), ("3.png", "dog")]
    assert table(splits.val) == [("4.png", "cat"), ("5.png", "dog")]
    assert splits.train.class_names == ("cat", "dog")
    assert splits.train.weights is not None
    assert splits.train.weights.tolist() == [1, 3, 2, 5]
    assert "7 rows, 1 exact duplicates dropped" in said
    weighted = load("train", TrainConfig, ["sampling=weighted", "sampling.power=0"]).sampling
    drawn = Counter[int]()
    for epoch in range(110):
        drawn.update(epoch_rows(weighted, splits.train, 0, epoch).tolist())
    assert [abs(drawn[row] - 40 * weight) <= 2 for row, weight in enumerate([1, 3, 2, 5])] == [True] * 4


def test_without_splits_a_share_of_each_class_is_held_out(write: Write) -> None:
    config = write("file,kind", *(f"{n}.png,{'cat' if n % 2 else 'dog'}" for n in range(10)))
    config = replace(config, columns=ColumnsConfig("file", "kind", "split", "weight", "group"))
    splits, said = prepared(config)
    assert Counter(name for _, name in table(splits.val)) == {"cat": 1, "dog": 1}
    assert Counter(name for _, name in table(splits.train)) == {"cat": 4, "dog": 4}
    assert splits.train.weights is None
    assert "has no column 'split' (data.columns.split)" in said


def test_paths_are_relative_to_the_csv_or_to_the_root(write: Write, tmp_path: Path) -> None:
    config = write(*FULL)
    (tmp_path / "lists").mkdir()
    moved = (tmp_path / "manifest.csv").rename(tmp_path / "lists" / "mine.csv")
    expected = [f"{n}.png" for n in range(4)]
    from_root, _ = prepared(replace(config, csv="lists/mine.csv", relative_to="root"))
    assert [Path(path).name for path in from_root.train.paths] == expected
    moved.write_text(moved.read_text().replace("\n", "\n../", 6))
    from_csv, _ = prepared(replace(config, csv=str(moved)))
    assert from_csv.train.paths == from_root.train.paths


HOLES = [
    *FULL[:5],
    "6.png,NaN,train,nan,a",  # line 6
    "gone.png,cat,train,1,a",
    "7.png,null,val,,b",
    "lost.png,dog,val,,b",
    "8.png,cat,train, NA ,a",  # line 10
    *FULL[5:],
]


def test_stop_names_every_missing_thing_its_line_and_the_remedies(write: Write) -> None:
    message = refusal(write(*HOLES))
    for text in (
        "2 of 11 rows have no label", "line 6: ", "line 8: ",
        "on_missing_label=drop or data.on_missing_label=impute",
        "2 of 11 rows have no file", "line 7: ", "gone.png", "line 9: ", "data.on_missing_file=drop",
        "2 of 11 rows have no weight", "line 10: ", "data.on_missing_weight=impute",
    ):  # fmt: skip
        assert text in message


def test_a_long_list_is_cut_with_its_count(write: Write) -> None:
    message = refusal(write(*FULL, *(f"x{n}.png,cat,train,1,a" for n in range(25))))
    assert message.count("  - line") == 20
    assert "... and 5 more" in message


def policies(policy: str) -> dict[str, str]:
    return {f"on_missing_{what}": policy for what in ("label", "file", "weight")}


def test_drop_leaves_rows_out_and_counts_them(write: Write) -> None:
    splits, said = prepared(write(*HOLES, **policies("drop")))
    plain, _ = prepared(write(*FULL))
    assert (table(splits.train), table(splits.val)) == (table(plain.train), table(plain.val))
    assert "missing labels: 2 rows, 2 dropped, 0 training and 0 validation images imputed" in said
    assert "missing files: 2 rows, 2 dropped" in said
    assert "missing weights: 2 rows, 2 dropped" in said


def test_impute_fills_in_from_the_group_the_class_and_the_split(write: Write) -> None:
    splits, said = prepared(write(*HOLES, **policies("impute")))
    assert splits.train.weights is not None
    filled = dict(zip([*table(splits.train)], splits.train.weights.tolist(), strict=True))
    assert ("6.png", "cat") in filled, "the label of its group"
    assert ("7.png", "dog") in table(splits.val)
    assert filled["8.png", "cat"] == filled["6.png", "cat"] == 1.0, "the median of 1, 3 and 1"
    # gone.png: the first other cat of the training images; lost.png: the first other dog to validate on.
    assert Counter(table(splits.train))["0.png", "cat"] == 2
    assert Counter(table(splits.val))["7.png", "dog"] == 2
    assert len(splits.train) + len(splits.val) == 11
    assert "missing labels: 2 rows, 0 dropped, 1 training and 1 validation images imputed" in said
    assert "missing weights: 2 rows, 0 dropped, 2 training and 0 validation images imputed" in said


def test_a_stand_in_is_never_on_both_sides_of_a_cut(write: Write) -> None:
    lines = [f"{n}.png,{'cat' if n % 2 else 'dog'}" for n in range(10)]
    lines += [f"x{n}.png,{'cat' if n % 2 else 'dog'}" for n in range(6)]
    splits, _ = prepared(write("path,label", *lines, on_missing_file="impute", val_fraction=0.4))
    assert len(splits.train) + len(splits.val) == 16
    assert len(set(splits.train.paths) | set(splits.val.paths)) == 10
    assert not set(splits.train.paths) & set(splits.val.paths)


@pytest.mark.parametrize(
    ("line", "changes", "expected"),
    [
        ("6.png,,train,1,", {"on_missing_label": "impute"}, "1 labels cannot be imputed"),
        ("6.png,,train,1,z", {"on_missing_label": "impute"}, "1 labels cannot be imputed"),
        ("x.png,hen,train,1,a", {"on_missing_file": "impute"}, "no other image of their class and split"),
        ("6.png,hen,train,,a", {"on_missing_weight": "impute"}, "no image of their class has one"),
    ],
)
def test_what_nothing_tells_cannot_be_imputed(
    write: Write, line: str, changes: dict[str, str], expected: str
) -> None:
    message = refusal(write(*FULL, line, **changes))
    assert expected in message
    assert "line 8: " in message
    assert "=drop" in message


def test_all_malformed_cells_are_named_at_once(write: Write) -> None:
    lines = [
        "6.png,cat,test,1,a",
        "7.png,cat,train,lots,a",
        "8.png,cat,train,-1,a",
        "9.png,cat",
        ",cat,val,1,a",
    ]
    message = refusal(write(*FULL, *lines, "6.png,dog,,1,a", "8.png,dog,train,inf,b"))
    assert "has 7 mistakes" in message
    for text in (
        "line 8: split 'test'", "line 9: weight 'lots'", "line 10: weight '-1'", "line 11: 2 cells",
        "line 12: no path", "line 13: no split", "line 14: weight 'inf'",
    ):  # fmt: skip
        assert text in message


def test_a_file_in_both_splits_or_with_two_labels_is_refused(write: Write) -> None:
    message = refusal(write(*FULL, "./0.png,cat,val,1,a", "1.png,dog,train,3,a"))
    assert "contradicts itself about 2 files" in message
    assert "lines 2 and 8: " in message
    assert "split 'train' and 'val'" in message
    assert "label 'cat' and 'dog'" in message


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("path;label", "separate the columns by commas"),
        ("path,kind", "data.columns.label=NAME"),
        ("path,label,Split", "one column 'split' is needed, there are ['Split']"),
        ("path,label,label", "['label', 'label']"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(write: Write, header: str, expected: str) -> None:
    assert expected in refusal(write(header, "0.png,cat,train"))


def test_no_manifest_and_one_class_are_refused(write: Write) -> None:
    assert "no manifest" in refusal(replace(write(*FULL), csv="other.csv"))
    assert "at least two" in refusal(write("path,label", "0.png,cat", "1.png,cat"))
    assert "no rows" in refusal(write("path,label"))
