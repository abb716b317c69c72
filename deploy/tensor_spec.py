"""An input or output of a model: name, type, shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploy.errors import LabError

DTYPES = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "bool",
)  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model. `dtype` is numpy's name for it; a side is None where it is free."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {times(self.shape)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, raw: Any) -> TensorSpec:
        """The inverse of :meth:`to_dict`. Raises LabError for anything else."""
        try:
            name, dtype, shape = raw["name"], raw["dtype"], raw["shape"]
            good = type(name) is str and dtype in DTYPES and type(shape) is list and len(raw) == 3
            good = good and all(side is None or (type(side) is int and side > 0) for side in shape)
        except (KeyError, TypeError):
            good = False
        if not good:
            raise LabError(
                f"{raw!r:.120} is no tensor: needs name, dtype (one of {', '.join(DTYPES)}), shape"
            )
        return cls(name, dtype, tuple(shape))


def times(shape: Sequence[int | None]) -> str:
    """A shape in words: N x 3 x 224 x 224, a free side that is not the batch as ?."""
    free = ["N" if i == 0 else "?" for i in range(len(shape))]
    return (
        " x ".join(f if side is None else str(side) for f, side in zip(free, shape, strict=True)) or "scalar"
    )
