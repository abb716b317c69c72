"""A data set as a table: path, label, height and width of every image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """Checked images of one split. `labels` int64 [n] index `class_names`; `shapes` int64 [n, 2] are height
    and width in px, upright."""

    paths: tuple[str, ...]
    labels: Int64
    shapes: Int64
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Int64) -> Index:
        return Index(
            tuple(self.paths[i] for i in rows), self.labels[rows], self.shapes[rows], self.class_names
        )

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            paths=np.array(self.paths, dtype=np.str_),
            labels=self.labels,
            shapes=self.shapes,
            class_names=np.array(self.class_names, dtype=np.str_),
        )

    @classmethod
    def load(cls, path: Path) -> Index:
        with np.load(path, allow_pickle=False) as table:
            return cls(
                tuple(table["paths"].tolist()),
                table["labels"],
                table["shapes"],
                tuple(table["class_names"].tolist()),
            )


def class_counts(index: Index) -> Int64:
    """int64 [classes]: images of each."""
    return np.bincount(index.labels, minlength=len(index.class_names)).astype(np.int64)
