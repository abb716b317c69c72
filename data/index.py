"""A data set as a table: path, label, height and width of every image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shard:
    """A tar of many images that is read as one file."""

    file: str
    """Path or URL."""
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class Index:
    """Checked images of one split. `labels` int64 [n] index `class_names`; `shapes` int64 [n, 2] are height
    and width in px, upright.

    A path is a file's or a URL; `#offset+length` behind either, in bytes, means that part of it.
    """

    paths: tuple[str, ...]
    labels: Int64
    shapes: Int64
    class_names: tuple[str, ...]
    weights: Float64 | None = None
    """[n], at least 0: how often `sampling=weighted` takes an image, relative to the others; None: all 1."""
    shards: tuple[Shard, ...] = ()
    """The files that the paths are parts of; empty where each image is a file of its own."""

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Int64) -> Index:
        return Index(
            tuple(self.paths[i] for i in rows),
            self.labels[rows],
            self.shapes[rows],
            self.class_names,
            None if self.weights is None else self.weights[rows],
            self.shards,
        )

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        columns: dict[str, Any] = {
            "paths": np.array(self.paths, dtype=np.str_),
            "labels": self.labels,
            "shapes": self.shapes,
            "class_names": np.array(self.class_names, dtype=np.str_),
            "shard_files": np.array([shard.file for shard in self.shards], dtype=np.str_),
            "shard_sizes": np.array([shard.size for shard in self.shards], np.int64),
            "shard_sha256": np.array([shard.sha256 for shard in self.shards], dtype=np.str_),
        }
        if self.weights is not None:
            columns["weights"] = self.weights
        np.savez(path, **columns)

    @classmethod
    def load(cls, path: Path) -> Index:
        with np.load(path, allow_pickle=False) as table:
            return cls(
                tuple(table["paths"].tolist()),
                table["labels"],
                table["shapes"],
                tuple(table["class_names"].tolist()),
                table.get("weights"),
                tuple(
                    Shard(file, size, sha256)
                    for file, size, sha256 in zip(
                        table["shard_files"].tolist(),
                        table["shard_sizes"].tolist(),
                        table["shard_sha256"].tolist(),
                        strict=True,
                    )
                ),
            )


def class_counts(index: Index) -> Int64:
    """int64 [classes]: images of each."""
    return np.bincount(index.labels, minlength=len(index.class_names)).astype(np.int64)


def concatenate(one: Index, other: Index) -> Index:
    """The images of both, which have the same classes."""
    assert one.class_names == other.class_names
    weights = None
    if one.weights is not None or other.weights is not None:
        weights = np.concatenate([np.ones(len(i)) if i.weights is None else i.weights for i in (one, other)])
    return Index(
        one.paths + other.paths,
        np.concatenate([one.labels, other.labels]),
        np.concatenate([one.shapes, other.shapes]),
        one.class_names,
        weights,
        tuple(dict.fromkeys(one.shards + other.shards)),
    )
