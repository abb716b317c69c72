"""From a data config to two checked indexes. One process does this for all ranks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.images import (
    Cifar10Config,
    DataConfig,
    DigitsConfig,
    ImageFolderConfig,
    ManifestConfig,
    ShardsConfig,
    SyntheticConfig,
)
from data.check import check_images, sort_out
from data.cifar10 import write_cifar10
from data.digits import write_digits
from data.fetch import is_url, list_tree
from data.folder import Listing, class_folders, list_folder
from data.folds import fold, held_out
from data.index import Index, concatenate
from data.manifest import read_manifest
from data.reader import Reader
from data.shard_manifest import shard_indexes
from data.synthetic import write_synthetic
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.machine import usable_cores


@dataclass(frozen=True)
class Splits:
    train: Index
    val: Index

    def save(self, folder: Path) -> None:
        self.train.save(folder / "train.npz")
        self.val.save(folder / "val.npz")

    @classmethod
    def load(cls, folder: Path) -> Splits:
        return cls(Index.load(folder / "train.npz"), Index.load(folder / "val.npz"))


def input_spec(config: DataConfig, class_names: tuple[str, ...]) -> InputSpec:
    return InputSpec(
        size=config.input.size,
        resize=config.input.resize,
        mean=tuple(config.input.mean),
        std=tuple(config.input.std),
        class_names=class_names,
    )


def prepare(
    config: DataConfig,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Splits:
    """Make or find the images, check each, and split them; `folder` gets the list of what was wrong.

    `say` hears summaries, `advance` the number of images done of how many. Raises LabError.
    """
    if isinstance(config, ShardsConfig):
        return Splits(*shard_indexes(config, say, advance))
    train, val = _listings(config)
    for line in train.notes:
        say(line)
    for split, listing in (("train", train), ("val", val)):
        if listing is not None and listing.ignored:
            counts = ", ".join(f"{count} x {suffix}" for suffix, count in sorted(listing.ignored.items()))
            say(f"{split}: files that are no images are left out: {counts}")
    files = train.paths + (val.paths if val else [])
    done = 0

    def count(number: int) -> None:
        nonlocal done
        done += number
        advance(done, len(files))

    versions = train.versions | (val.versions if val else {})
    reader = Reader(config.storage)
    threads = max(usable_cores(), reader.threads if versions else 0)
    checked = check_images(files, Path(config.cache_dir), threads, count, reader, versions)
    keep, summary = sort_out(checked, config.on_bad, folder / "images.tsv")
    for line in summary:
        say(line)
    labels = train.labels + (val.labels if val else [])
    index = Index(
        tuple(c.path for c in checked),
        np.array(labels, np.int64),
        np.array([(c.height, c.width) for c in checked], np.int64),
        train.class_names,
        None if train.weights is None else np.array(train.weights + [1.0] * (len(files) - len(train.paths))),
    )
    kept = np.flatnonzero(keep)
    if val is None:
        assert isinstance(config, ImageFolderConfig)
        index = index.take(kept)
        out = held_out(index.labels, index.class_names, config.val_fraction)
        splits = Splits(index.take(np.flatnonzero(~out)), index.take(np.flatnonzero(out)))
    else:
        border = len(train.paths)
        splits = Splits(index.take(kept[kept < border]), index.take(kept[kept >= border]))
    _require_every_class(splits)
    return splits


def resplit(splits: Splits, folds: int, number: int, stratified: bool, seed: int) -> Splits:
    """Both splits joined and cut anew into fold `number` of `folds`; see `data.folds.fold`.

    An image that is there twice, in place of a missing one, is taken once: it must not be on both sides.
    """
    joined = concatenate(splits.train, splits.val)
    joined = joined.take(np.sort(np.unique(joined.paths, return_index=True)[1]))
    train, val = fold(joined, folds, number, stratified, seed)
    cut = Splits(joined.take(train), joined.take(val))
    _require_every_class(cut)
    return cut


def _listings(config: DataConfig) -> tuple[Listing, Listing | None]:
    """The training images and, unless they are still to be cut from those, the validation images."""
    root = Path(config.root)
    if isinstance(config, ImageFolderConfig):
        return _folder_listings(config)
    if isinstance(config, ManifestConfig):
        return read_manifest(config)
    if isinstance(config, DigitsConfig):
        _write_once(root, write_digits)
        names = ("train", "val")
    elif isinstance(config, SyntheticConfig):
        detail = f"{config.num_classes}-{config.num_train}-{config.num_val}-{config.width}x{config.height}"
        root = root / detail
        _write_once(root, lambda temporary: write_synthetic(temporary, config))
        names = ("train", "val")
    else:
        assert isinstance(config, Cifar10Config)
        if config.source is None:
            _write_once(root, write_cifar10)
        else:
            root = Path(config.source)
        names = ("train", "test")
    train = list_folder(root / names[0])
    return train, list_folder(root / names[1], train.class_names)


def _folder_listings(config: ImageFolderConfig) -> tuple[Listing, Listing | None]:
    root = config.root.rstrip("/") or "/"
    stored = list_tree(root, config.storage) if is_url(root) else None
    if stored is None and not Path(root).is_dir():
        raise LabError(f"data.root={root}: no such folder; give the folder that holds your images")
    if stored is not None and not stored:
        raise LabError(
            f"data.root={root}: no such bucket, or nothing below that prefix; give the address of the folder "
            "that holds your images"
        )
    here = class_folders(root, stored)
    split_names = {config.train_split, config.val_split}
    if split_names <= set(here):
        train = list_folder(f"{root}/{config.train_split}", None, stored)
        return train, list_folder(f"{root}/{config.val_split}", train.class_names, stored)
    if split_names & set(here):
        absent = (split_names - set(here)).pop()
        raise LabError(
            f"data.root={root} has folders {here} but no {absent!r}: "
            "name the two splits with data.train_split=... data.val_split=..."
        )
    return list_folder(root, None, stored), None


def _require_every_class(splits: Splits) -> None:
    for split, index in (("training", splits.train), ("validation", splits.val)):
        present = set(index.labels.tolist())
        gone = [name for label, name in enumerate(index.class_names) if label not in present]
        if gone:
            raise LabError(
                f"no readable {split} image is left in the classes {gone[:10]}; add some or remove them"
            )


def _write_once(root: Path, write: Callable[[Path], None]) -> None:
    """Make a data set in a temporary folder and move it to `root` when it is whole."""
    if root.exists():
        return
    temporary = root.with_name(f"{root.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        try:
            temporary.rename(root)
        except OSError:
            if not root.exists():  # else another run, of the same sweep for one, was first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
