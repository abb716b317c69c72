"""From a data config to two checked indexes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from numpy.typing import NDArray
from PIL import Image

import data.prepare
from configs.images import Cifar10Config, DataConfig, DigitsConfig, ImageFolderConfig, SyntheticConfig
from configs.load import load
from configs.schema import TrainConfig
from data.index import Index
from data.prepare import Splits, input_spec, prepare
from data.synthetic import draw
from deploy.errors import LabError
from tests.pictures import save


@pytest.fixture(scope="module")
def shipped() -> dict[str, DataConfig]:
    """The data sections as the YAML files have them."""
    names = ("digits", "synthetic", "cifar10", "image_folder")
    return {name: load("train", TrainConfig, [f"data={name}", "data.root=r"]).data for name in names}


@pytest.fixture
def folder_config(shipped: dict[str, DataConfig], tmp_path: Path) -> ImageFolderConfig:
    config = shipped["image_folder"]
    assert isinstance(config, ImageFolderConfig)
    return replace(config, root=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def fill(folder: Path, count: int, first: int = 0) -> None:
    for n in range(first, first + count):
        save(folder / f"{n}.png", 8, 9, seed=n)


def refusal(config: DataConfig, tmp_path: Path) -> str:
    with pytest.raises(LabError) as caught:
        prepare(config, tmp_path / "run")
    return str(caught.value)


def counts(index: Index) -> dict[str, int]:
    """Images of each class."""
    return dict(Counter(index.class_names[label] for label in index.labels.tolist()))


def test_digits_are_real_stratified_and_the_same_twice(
    shipped: dict[str, DataConfig], tmp_path: Path
) -> None:
    config = shipped["digits"]
    assert isinstance(config, DigitsConfig)
    roots = [tmp_path / "one", tmp_path / "two"]
    first, second = (
        prepare(replace(config, root=str(root), cache_dir=f"{root}_cache"), tmp_path) for root in roots
    )
    assert contents(roots[0]) == contents(roots[1])
    assert (len(first.train), len(first.val)) == (1437, 360)
    assert first.train.class_names == first.val.class_names == tuple("0123456789")
    assert set(map(tuple, np.vstack([first.train.shapes, first.val.shapes]))) == {(8, 8)}
    # Every fifth image of every class is held out, and no image is in both splits.
    for name, count in counts(first.val).items():
        assert abs(count - 0.2 * (count + counts(first.train)[name])) < 1
    rows = [Path(path).name for path in (*first.train.paths, *first.val.paths)]
    assert len(set(rows)) == 1797
    assert second.train.labels.tolist() == first.train.labels.tolist()


def small_synthetic(shipped: dict[str, DataConfig], root: Path) -> SyntheticConfig:
    config = shipped["synthetic"]
    assert isinstance(config, SyntheticConfig)
    small = replace(config, num_classes=3, num_train=9, num_val=6, width=50, height=40)
    return replace(small, root=str(root), cache_dir=str(root / "cache"))


def test_synthetic_images_are_as_ordered_and_the_same_bytes_twice(
    shipped: dict[str, DataConfig], tmp_path: Path
) -> None:
    splits = prepare(small_synthetic(shipped, tmp_path / "one"), tmp_path)
    again = prepare(small_synthetic(shipped, tmp_path / "two"), tmp_path)
    assert counts(splits.train) == {"class_000": 3, "class_001": 3, "class_002": 3}
    assert counts(splits.val) == {"class_000": 2, "class_001": 2, "class_002": 2}
    assert splits.train.shapes.tolist() == [[40, 50]] * 9
    files = [Path(path).read_bytes() for path in (*splits.train.paths, *splits.val.paths)]
    assert len(set(files)) == 15, "no image is there twice"
    assert [Path(path).read_bytes() for path in (*again.train.paths, *again.val.paths)] == files


def test_another_order_of_synthetic_images_is_another_data_set(
    shipped: dict[str, DataConfig], tmp_path: Path
) -> None:
    config = small_synthetic(shipped, tmp_path / "images")
    assert len(prepare(config, tmp_path).train) == 9
    assert len(prepare(replace(config, num_train=12), tmp_path).train) == 12
    assert len(prepare(config, tmp_path).train) == 9


def test_a_synthetic_photograph_has_the_file_size_of_a_real_one(tmp_path: Path) -> None:
    for row in range(4):
        path = tmp_path / f"{row}.jpg"
        Image.fromarray(draw(row, row, 4, 375, 500)).save(path, quality=90)
        assert 30_000 < path.stat().st_size < 200_000


def strokes(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How strong the gradients are in each of twelve directions, at the size of the waves."""
    height, width = image.shape[:2]
    grey = np.asarray(Image.fromarray(image).convert("L").resize((width // 5, height // 5)), np.float64)
    down, right = np.gradient(grey)
    direction = np.arctan2(down, right) % np.pi
    histogram, _ = np.histogram(direction, bins=12, range=(0, np.pi), weights=np.hypot(down, right) ** 2)
    return np.asarray(histogram / histogram.sum(), np.float64)


def colours(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How much each colour varies."""
    spread = image.reshape(-1, 3).std(axis=0)
    return np.asarray(spread / spread.sum(), np.float64)


@pytest.mark.parametrize("features", [strokes, colours])
def test_synthetic_classes_can_be_learned(
    features: Callable[[NDArray[np.uint8]], NDArray[np.float64]],
) -> None:
    table = np.array([features(draw(row, row % 10, 10, 90, 120)) for row in range(200)])
    labels = np.arange(200) % 10
    means = np.array([table[:100][labels[:100] == label].mean(axis=0) for label in range(10)])
    nearest = np.linalg.norm(table[100:, None] - means, axis=2).argmin(axis=1)
    assert (nearest == labels[100:]).mean() > 0.9, "chance is 0.1"


def test_split_folders_are_taken_as_they_are(folder_config: ImageFolderConfig, tmp_path: Path) -> None:
    root = Path(folder_config.root)
    for split, count in (("train", 3), ("val", 2)):
        for name in ("Zebra", "ein Löwe", "ape"):
            fill(root / split / name, count, first=len(name) * 10 + count)
    splits = prepare(folder_config, tmp_path / "run")
    assert splits.train.class_names == ("Zebra", "ape", "ein Löwe"), "sorted by name, upper case first"
    assert counts(splits.train) == {"Zebra": 3, "ape": 3, "ein Löwe": 3}
    assert counts(splits.val) == {"Zebra": 2, "ape": 2, "ein Löwe": 2}
    for index in (splits.train, splits.val):
        assert [Path(path).parent.name for path in index.paths] == [
            index.class_names[label] for label in index.labels
        ]
    assert input_spec(folder_config, splits.train.class_names).class_names == ("Zebra", "ape", "ein Löwe")


def test_splits_can_have_other_names(folder_config: ImageFolderConfig, tmp_path: Path) -> None:
    for split in ("training images", "held out"):
        for name in ("a", "b"):
            fill(Path(folder_config.root) / split / name, 1)
    named = replace(folder_config, train_split="training images", val_split="held out")
    assert len(prepare(named, tmp_path / "run").train) == 2


def test_without_split_folders_a_share_of_each_class_is_held_out(
    folder_config: ImageFolderConfig, tmp_path: Path
) -> None:
    root = Path(folder_config.root)
    for name, count in (("common", 60), ("usual", 20), ("rare", 2)):
        fill(root / name, count)
    splits = prepare(folder_config, tmp_path / "run")
    assert counts(splits.val) == {"common": 12, "usual": 4, "rare": 1}
    assert counts(splits.train) == {"common": 48, "usual": 16, "rare": 1}
    assert sorted(splits.train.paths + splits.val.paths) == sorted(map(str, root.rglob("*.png")))
    again = prepare(folder_config, tmp_path / "run")
    assert (again.train.paths, again.val.paths) == (splits.train.paths, splits.val.paths)


@pytest.mark.parametrize("val_fraction", [0.01, 0.99])
def test_every_class_is_on_both_sides_of_a_cut(
    folder_config: ImageFolderConfig, tmp_path: Path, val_fraction: float
) -> None:
    for name in ("a", "b", "c"):
        fill(Path(folder_config.root) / name, 3)
    splits = prepare(replace(folder_config, val_fraction=val_fraction), tmp_path / "run")
    assert set(counts(splits.train)) == set(counts(splits.val)) == {"a", "b", "c"}
    assert len(splits.train) + len(splits.val) == 9


def test_a_class_with_one_image_cannot_be_cut(folder_config: ImageFolderConfig, tmp_path: Path) -> None:
    fill(Path(folder_config.root) / "many", 5)
    fill(Path(folder_config.root) / "single", 1)
    message = refusal(folder_config, tmp_path)
    assert "'single'" in message
    assert "'many'" not in message
    assert "add images or remove" in message


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ([], ["no such folder", "data.root="]),
        (["train/a", "train/b"], ["no 'val'", "data.val_split="]),
        (["val/a", "val/b"], ["no 'train'", "data.train_split="]),
        (["a/", "b"], ["['a']", "fill or remove"]),
        (["a"], ["one class only, 'a'", "at least two"]),
        (["train/a", "train/b", "val/a"], ["missing class folders ['b']"]),
        (["train/a", "train/b", "val/a", "val/b", "val/c"], ["unknown ones ['c']"]),
        (["train/a", "train/b", "val/"], ["holds no class folders", "one folder of images a class"]),
    ],
)
def test_a_folder_that_holds_no_data_set_is_refused(
    folder_config: ImageFolderConfig, tmp_path: Path, folders: list[str], expected: list[str]
) -> None:
    for folder in folders:
        path = Path(folder_config.root) / folder
        if folder.endswith("/"):
            path.mkdir(parents=True)
        else:
            fill(path, 2)
    message = refusal(folder_config, tmp_path)
    assert [text for text in expected if text not in message] == []


def test_other_files_are_left_out_and_said(folder_config: ImageFolderConfig, tmp_path: Path) -> None:
    root = Path(folder_config.root)
    for split in ("train", "val"):
        for name in ("a", "b"):
            fill(root / split / name, 2)
    (root / "train" / "a" / "notes.txt").touch()
    (root / "train" / "b" / "more.TXT").touch()
    (root / "train" / "b" / "README").touch()
    (root / "train" / ".hidden").mkdir()
    said: list[str] = []
    splits = prepare(folder_config, tmp_path / "run", said.append)
    assert (len(splits.train), len(splits.val)) == (4, 4)
    assert said[0] == "train: files that are no images are left out: 2 x .txt, 1 x no suffix"
    assert not any(line.startswith("val:") for line in said)


def test_images_in_deeper_folders_belong_to_the_class(
    folder_config: ImageFolderConfig, tmp_path: Path
) -> None:
    for name in ("a/2024/may", "a/2025", "b"):
        fill(Path(folder_config.root) / name, 2)
    splits = prepare(folder_config, tmp_path / "run")
    assert len(splits.train) + len(splits.val) == 6
    assert splits.train.class_names == ("a", "b")


def test_quarantined_images_are_in_no_split(folder_config: ImageFolderConfig, tmp_path: Path) -> None:
    root = Path(folder_config.root)
    for split in ("train", "val"):
        for name in ("a", "b"):
            fill(root / split / name, 3)
        (root / split / "a" / "1.png").write_bytes(b"")
    assert "data.on_bad=quarantine" in refusal(folder_config, tmp_path)
    splits = prepare(replace(folder_config, on_bad="quarantine"), tmp_path / "run")
    assert counts(splits.train) == counts(splits.val) == {"a": 2, "b": 3}
    assert not any(path.endswith("a/1.png") for path in splits.train.paths + splits.val.paths)
    assert (tmp_path / "run" / "images.tsv").read_text().count("broken\t") == 2


def test_a_class_that_is_broken_throughout_is_refused(
    folder_config: ImageFolderConfig, tmp_path: Path
) -> None:
    root = Path(folder_config.root)
    for split in ("train", "val"):
        for name in ("a", "b"):
            fill(root / split / name, 2)
    for path in (root / "val" / "b").iterdir():
        path.write_bytes(b"")
    message = refusal(replace(folder_config, on_bad="quarantine"), tmp_path)
    assert "no readable validation image" in message
    assert "['b']" in message


def test_every_image_is_counted_towards_the_total(folder_config: ImageFolderConfig, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(Path(folder_config.root) / name, 3)

    def progress() -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        prepare(folder_config, tmp_path / "run", advance=lambda done, total: seen.append((done, total)))
        return seen

    assert [pair for pair in progress() if pair[0]] == [(done, 6) for done in range(1, 7)]
    assert progress() == [(6, 6)], "from the cache"


def cifar10_config(shipped: dict[str, DataConfig], tmp_path: Path, source: Path | None) -> Cifar10Config:
    config = shipped["cifar10"]
    assert isinstance(config, Cifar10Config)
    return replace(
        config,
        root=str(tmp_path / "cifar10"),
        cache_dir=str(tmp_path / "cache"),
        source=str(source) if source else None,
    )


def test_cifar10_reads_a_local_copy(shipped: dict[str, DataConfig], tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            fill(tmp_path / "copy" / split / name, 2)
    splits = prepare(cifar10_config(shipped, tmp_path, tmp_path / "copy"), tmp_path)
    assert counts(splits.train) == counts(splits.val) == {"cat": 2, "dog": 2}
    assert not (tmp_path / "cifar10").exists()


def test_cifar10_without_a_network_says_what_to_do(
    shipped: dict[str, DataConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(root: str, **options: Any) -> None:
        Path(root).mkdir(parents=True)
        raise OSError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", no_network)
    message = refusal(cifar10_config(shipped, tmp_path, None), tmp_path)
    assert "Name or service not known" in message
    assert "data.source=" in message
    assert list(tmp_path.glob("cifar10*")) == []


def test_the_original_cifar10_becomes_folders_of_images(
    shipped: dict[str, DataConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fake(list[tuple[Image.Image, int]]):
        classes = ("airplane", "automobile")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            (Path(root)).mkdir(exist_ok=True)
            (Path(root) / "archive.tar.gz").touch()
            super().__init__((Image.new("RGB", (32, 32)), n % 2) for n in range(6 if train else 4))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    splits = prepare(cifar10_config(shipped, tmp_path, None), tmp_path)
    assert counts(splits.train) == {"airplane": 3, "automobile": 3}
    assert counts(splits.val) == {"airplane": 2, "automobile": 2}
    assert sorted(path.name for path in (tmp_path / "cifar10").iterdir()) == ["test", "train"]


def test_a_data_set_that_fails_half_way_leaves_nothing_behind(
    shipped: dict[str, DataConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_synthetic(shipped, tmp_path / "images")

    def half(root: Path, config: SyntheticConfig) -> None:
        fill(root / "train" / "class_000", 1)
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(data.prepare, "write_synthetic", half)
        with pytest.raises(OSError, match="No space left"):
            prepare(config, tmp_path)
    assert list((tmp_path / "images").iterdir()) == []
    assert len(prepare(config, tmp_path).train) == 9


def test_a_data_set_is_made_once(shipped: dict[str, DataConfig], tmp_path: Path) -> None:
    config = small_synthetic(shipped, tmp_path / "images")
    first = prepare(config, tmp_path)
    for path in (*first.train.paths, *first.val.paths):
        os.utime(path, (1, 1))
    prepare(config, tmp_path)
    assert {os.path.getmtime(path) for path in first.train.paths} == {1}


def test_splits_read_back_as_they_were_saved(tmp_path: Path) -> None:
    names = ("ein Löwe", "two words", "猫")
    paths = tuple(f"/ä b/{name}/{n}.jpg" for n, name in enumerate(names))
    train = Index(paths, np.arange(3), np.array([[4, 5], [6, 7], [8, 9]]), names)
    Splits(train, train.take(np.array([2]))).save(tmp_path / "run")
    read = Splits.load(tmp_path / "run")
    for got, expected in ((read.train, train), (read.val, train.take(np.array([2])))):
        assert (got.paths, got.class_names) == (expected.paths, names)
        assert np.array_equal(got.labels, expected.labels)
        assert np.array_equal(got.shapes, expected.shapes)
        assert got.labels.dtype == got.shapes.dtype == np.int64
    assert len(read.val) == 1
