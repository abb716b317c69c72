"""A table of features: what a trained network makes of the images of a split."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.index import Int64
from deploy.errors import LabError


@dataclass(frozen=True)
class Features:
    values: npt.NDArray[np.float32]
    """[n, d]"""
    labels: Int64
    """[n], into `class_names`."""
    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    """Of the images; empty where rows were made from several."""

    def counts(self) -> Int64:
        """Rows of each class [classes]."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    def save(self, path: Path) -> None:
        """Write beside `path` and rename. Raises LabError where that cannot be written."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez(
                    file,
                    features=self.values,
                    labels=self.labels,
                    class_names=np.array(self.class_names, dtype=np.str_),
                    paths=np.array(self.paths, dtype=np.str_),
                )
            temporary.replace(path)
        except OSError as error:
            raise LabError(f"{path} cannot be written ({error.strerror}): choose another --out") from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Features:
        """Raises LabError where `path` is missing or no table of features."""
        try:
            with np.load(path, allow_pickle=False) as table:
                names, paths = tuple(table["class_names"].tolist()), tuple(table["paths"].tolist())
                return cls(table["features"], table["labels"], names, paths)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise LabError(
                f"{path} holds no features ({error}): make them with python -m scripts.features"
            ) from error
